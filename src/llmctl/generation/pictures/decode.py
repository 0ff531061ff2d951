"""Decoding of one picture with Pillow: the part that runs in the sandboxed child.

Colour profiles (ICC) are ignored: values are taken as sRGB, as the image processors of transformers take them, and one
parser of untrusted data less is used. Transparent parts become white. Of an animation or a document of several pages,
the first is decoded.
"""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import first_line
from llmctl.generation.pictures.formats import NAMES, RefusedError, format_of, webp_size
from llmctl.generation.pictures.picture import PictureLimits
from llmctl.machine.sandbox import Binary
from llmctl.platform_support import open_without_waiting
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112  # the tag of EXIF
_ROWS = 256  # of a picture whose transparency is resolved at a time
_SPECIAL_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def decode_in_child(source: bytes | Path, limits: PictureLimits, *, parent: int) -> Any:
    """Return the pixels as a `Binary` with width and height, or the refusal as a JSON object.

    Args:
        source: A file, or its content.
        limits: Limits of the picture.
        parent: Process id of the caller. Pillow's global settings are changed in another process only.
    """
    try:
        data = source if isinstance(source, bytes) else read_file(source, limits)
        _check_file_bytes(len(data), limits)
        format_ = format_of(data)
        if os.getpid() != parent:
            _set_up_pillow()
        rgb = _decode(data, format_, limits)
        check_size(rgb.size, limits)
        return Binary(list(rgb.size), rgb.tobytes())
    except RefusedError as error:
        return {"reason": error.reason, "hint": error.hint}


def read_file(path: Path, limits: PictureLimits) -> bytes:
    """Return the content of a regular file. Pipes and devices, which may never end, are refused.

    Raises:
        RefusedError: it cannot be read, or is too large.
    """
    try:
        _check_is_file(path.stat(), limits)  # opening a device, or one end of a pipe, can have effects of its own
        descriptor = open_without_waiting(path)
        try:
            _check_is_file(os.fstat(descriptor), limits)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(limits.file_bytes + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise RefusedError("does not exist", hint="check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RefusedError(f"cannot be read: {reason}", hint="check the path and its permissions") from None


def _check_is_file(status: os.stat_result, limits: PictureLimits) -> None:
    for is_special, name in _SPECIAL_FILES:
        if is_special(status.st_mode):
            raise RefusedError(f"is {name}, not a file", hint="save the picture as a file, and name that")
    _check_file_bytes(status.st_size, limits)


def _check_file_bytes(size: int, limits: PictureLimits) -> None:
    if size > limits.file_bytes:
        raise RefusedError(
            f"is larger than {format_bytes(limits.file_bytes)}", hint="make the picture smaller, or save it as JPEG"
        )


def check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    """Check width and height.

    Raises:
        RefusedError: there are no pixels or too many, or a side is too long.
    """
    width, height = size
    if min(size) < 1:
        raise RefusedError(f"has no pixels: its size is {width} x {height}", hint="check the program that wrote it")
    if width * height > limits.pixels:
        raise RefusedError(f"has {width:,} x {height:,} pixels, more than {limits.pixels:,}", hint="make it smaller")
    if max(size) > limits.side:
        raise RefusedError(
            f"has {width:,} x {height:,} pixels, and a side may have {limits.side:,}", hint="cut or shrink it"
        )


def _set_up_pillow() -> None:
    """Set Pillow's global settings, whatever the program around llmctl has set."""
    from PIL import AvifImagePlugin, Image, ImageFile

    Image.MAX_IMAGE_PIXELS = None  # `check_size` does this, with an error that says what to do
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # every thread takes 64 MB of the address space


def _decode(data: bytes, format_: str, limits: PictureLimits) -> "Image.Image":
    """Return the picture in RGB.

    Raises:
        RefusedError: it is too large, damaged, or in a variant of its format that cannot be read.
    """
    from PIL import Image, features

    if format_ == "AVIF" and not features.check("avif"):
        raise RefusedError("is an AVIF picture, which this Pillow cannot read")
    if format_ == "WEBP" and (size := webp_size(data)) is not None:
        check_size((size.width, size.height), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of faults in metadata
            with Image.open(io.BytesIO(data), formats=[format_]) as image:
                check_size(image.size, limits)
                return upright_rgb(image)
    except (RefusedError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise RefusedError(f"has more than {limits.pixels:,} pixels", hint="make it smaller") from None
    except Exception as error:  # Pillow's decoders raise exceptions of any type for damaged data
        raise damaged(format_, error) from error


def damaged(format_: str | None, error: Exception) -> RefusedError:
    """Return the refusal of a picture that its decoder cannot read."""
    from PIL import UnidentifiedImageError

    # the message of this one has the address of an object in memory, and nothing else
    reason = "" if isinstance(error, UnidentifiedImageError) else f" ({first_line(error)})"
    return RefusedError(
        f"is {NAMES.get(format_ or '', 'a picture')} that is truncated, damaged or of an unusual kind{reason}",
        hint="open it in a viewer and save it again as PNG",
    )


def upright_rgb(image: "Image.Image") -> "Image.Image":
    """Return an image in RGB: turned as its EXIF says, with white behind transparent parts.

    Raises:
        RefusedError: its samples have 32 bits, so that their range is unknown.
    """
    image.load()
    orientation = _orientation(image)
    rgb = _rgb(image)
    return rgb if orientation is None else rgb.transpose(orientation)


def _orientation(image: "Image.Image") -> "Image.Transpose | None":
    """Return the operation that turns an image upright; None if there is none, or its EXIF is damaged."""
    from PIL.Image import Transpose

    operations = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return operations.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (parsing EXIF raises exceptions of any type; viewers show such pictures unturned)
        return None


def _rgb(image: "Image.Image") -> "Image.Image":
    """Return an image in RGB, without transparency."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("I", "F"):
        raise RefusedError("has samples of 32 bits, whose range is unknown", hint="save it with 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS):  # whole images beside each other would need much more memory
        part = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        white = Image.new("RGBA", part.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, part.convert("RGBA")).convert("RGB"), (0, top))
    return rgb


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Return a grey image of 16 bits with 8 bits, and with an alpha channel if one of its values is transparent.

    Pillow's own conversion would cut values above 255 off.
    """
    from PIL import Image

    wide = image.convert("I")
    grey = wide.point([value >> 8 for value in range(65536)], "L")
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = wide.point([0 if value == transparent else 255 for value in range(65536)], "L")
    return Image.merge("LA", (grey, alpha))
