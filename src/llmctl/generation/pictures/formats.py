"""The format of a file, recognised by its content."""

from contextlib import suppress
from dataclasses import dataclass

from llmctl.text_files import NotTextError, decode

_CONVERT = "convert it to PNG or JPEG"


class RefusedError(Exception):
    """A picture that is not read.

    Args:
        reason: The end of a sentence that begins with the picture's name: "is a PDF document, not a picture".
        hint: What the user can do.
    """

    def __init__(self, reason: str, *, hint: str = _CONVERT) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


# What people call a format, by Pillow's name of it.
NAMES = {
    "PNG": "a PNG picture",
    "JPEG": "a JPEG picture",
    "GIF": "a GIF picture",
    "WEBP": "a WebP picture",
    "TIFF": "a TIFF picture",
    "BMP": "a BMP picture",
    "AVIF": "an AVIF picture",
}
# Where the signature stands, the signature, and Pillow's name of the format. Each file goes to one decoder only.
_READ = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
)
# Formats that people try, and that are not read: for the message.
_NOT_READ = (
    (0, b"%PDF", "a PDF document"),
    (0, b"8BPS", "a Photoshop file (PSD)"),
    (0, b"%!PS", "a PostScript file (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file (EPS)"),
    (0, b"\0\0\1\0", "a Windows icon (ICO)"),
    (0, b"\0\0\2\0", "a Windows cursor (CUR)"),
    (0, b"icns", "a macOS icon (ICNS)"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"gimp xcf", "a GIMP file (XCF)"),
    (0, b"qoif", "a QOI picture"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    *((0, b"P%d%c" % (digit, space), "a PPM picture") for digit in range(1, 7) for space in b" \n\t\r"),
)
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
_TEXT_BYTES = 1000  # that are looked at to tell what a text is
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def format_of(data: bytes) -> str:
    """Return Pillow's name of the format of a file's bytes.

    Raises:
        RefusedError: it is empty, or not in a format that is read.
    """
    if not data:
        raise RefusedError("is empty", hint="check the program that wrote it")
    for start, signature, name in _READ:
        if data.startswith(signature, start):
            return name
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    if data.startswith(b"ftyp", 4):
        return _format_of_boxes(data)
    for start, signature, name in _NOT_READ:
        if data.startswith(signature, start):
            raise RefusedError(f"is {name}, which llmctl does not read")
    raise _refusal_of_text(data)


def _format_of_boxes(data: bytes) -> str:
    """Return the format of a file in ISO's base media format, which AVIF, HEIC and MP4 share."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIC_BRANDS:
        raise RefusedError("is a HEIC picture, which llmctl does not read")
    raise RefusedError("is a video (MP4 or QuickTime), which llmctl does not read", hint="save one frame of it as PNG")


def _refusal_of_text(data: bytes) -> RefusedError:
    """Return the refusal of bytes that have no signature."""
    text = _beginning_as_text(data)
    if text is None:
        return RefusedError("is not a picture in a known format", hint=f"{_CONVERT}; it may be damaged")
    if text.startswith("version https://git-lfs.github.com"):
        return RefusedError("is a pointer of Git LFS, not the picture itself", hint="git lfs pull")
    if "<svg" in text:
        return RefusedError("is an SVG drawing, which llmctl does not read", hint="convert it to PNG")
    if text.startswith(("<!doctype html", "<html")):
        return RefusedError("is a web page, not a picture", hint="download the picture itself")
    return RefusedError("is a text file, not a picture", hint="give the file of a picture (PNG, JPEG, WebP, …)")


def _beginning_as_text(data: bytes) -> str | None:
    """Return the beginning of a text in lower case; None for bytes that are not text."""
    for end in range(_TEXT_BYTES, _TEXT_BYTES - 4, -1):  # the cut may be inside a character
        with suppress(NotTextError):
            return decode(data[:end]).lstrip().lower()
    return None


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int


def webp_size(data: bytes) -> Size | None:
    """Return the size in a WebP file's header; None if it is malformed. Pillow allocates the canvas before it tells.

    The layout: https://developers.google.com/speed/webp/docs/riff_container and RFC 6386 and 9649.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return Size(1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return Size(width, height)
    return None
