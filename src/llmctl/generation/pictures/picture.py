"""A decoded picture, and the limits of what is decoded."""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Pillow has four bytes for each pixel of RGB. Transparency and rotation need a few such copies at a time, and decoders
# have buffers of their own: two copies in libwebp, the coefficients of a progressive JPEG, frames of AVIF.
_BYTES_PER_PIXEL = 32
_BASE_BYTES = 300_000_000


@dataclass(frozen=True)
class PictureLimits:
    """Limits for one picture.

    Attributes:
        file_bytes: Maximum bytes of the file.
        pixels: Maximum pixels: width times height. The header is checked before anything is decoded.
        side: Maximum pixels of a side.
        seconds: Maximum seconds to read and decode it.
        fetch_seconds: Maximum seconds to fetch it from a URL, from the first name to the last byte.
        redirects: Maximum redirects of a URL.
    """

    file_bytes: int = 50_000_000
    pixels: int = 64_000_000
    side: int = 32_768
    seconds: float = 30.0
    fetch_seconds: float = 20.0
    redirects: int = 3

    @property
    def memory_bytes(self) -> int:
        """Memory that the decoder may use: enough for the largest picture in every format."""
        return _BASE_BYTES + _BYTES_PER_PIXEL * self.pixels

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pixels of the largest picture."""
        return 3 * self.pixels


DEFAULT_LIMITS = PictureLimits()


@dataclass(frozen=True)
class Picture:
    """A decoded picture: upright, in RGB, without transparency.

    Attributes:
        sha256: Hash of width, height and pixels, in hexadecimal. Equal pictures have equal hashes, however they were
            encoded.
        width: Pixels of a row.
        height: Rows.
        pixels: Red, green and blue of each pixel, row by row from the top: 3 * width * height bytes.
    """

    sha256: str
    width: int
    height: int
    pixels: bytes = field(repr=False, compare=False)

    @classmethod
    def of(cls, *, width: int, height: int, pixels: bytes) -> "Picture":
        """Return a picture with the hash of its content.

        Raises:
            ValueError: the number of bytes does not fit the size.
        """
        if min(width, height) < 1 or len(pixels) != 3 * width * height:
            raise ValueError(f"{len(pixels)} bytes are not the pixels of {width} x {height} in RGB")
        hash_ = hashlib.sha256(b"%d x %d\n" % (width, height))
        hash_.update(pixels)
        return cls(hash_.hexdigest(), width, height, pixels)

    def image(self) -> "Image.Image":
        """Return a new PIL image. Needs Pillow."""
        from PIL import Image

        return Image.frombytes("RGB", (self.width, self.height), self.pixels)
