"""Files of pictures made by code: every format and mode that is read, and hostile ones."""

import io
import struct
import zlib
from typing import Any

from PIL import Image

RED, GREEN, BLUE, WHITE, BLACK, GREY = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128),
)  # fmt: skip


def quarters(*, width: int = 48, height: int = 32) -> Image.Image:
    """Return an image whose top left quarter is red, top right green, bottom left blue and bottom right white."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def png(width: int, height: int, *, depth: int = 8, kind: int = 2, data: bytes = b"", chunks: bytes = b"") -> bytes:
    """Return a PNG with this header. `kind` is PNG's colour type; `chunks` come before the data."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def turned(orientation: int, format_: str = "JPEG") -> bytes:
    """Return `quarters` stored as this EXIF orientation says: upright, it is `quarters` again."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = quarters()
    if orientation in inverse:
        image = image.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if format_ == "JPEG" else {}
    return saved(image, format_, exif=exif, **options)


def interlaced_png() -> bytes:
    """Return 8 x 8 red pixels in the seven passes of Adam7, which Pillow does not write."""
    passes = ((8, 8, 0, 0), (8, 8, 4, 0), (4, 8, 0, 4), (4, 4, 2, 0), (2, 4, 0, 2), (2, 2, 1, 0), (1, 2, 0, 1))
    data = b""
    for step_x, step_y, start_x, start_y in passes:
        columns, rows = len(range(start_x, 8, step_x)), len(range(start_y, 8, step_y))
        data += (b"\0" + bytes(RED) * columns) * rows
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def rle_bmp() -> bytes:
    """Return a BMP of 8 x 2 pixels with run-length encoding: a red row over a blue one."""
    return rle_bmp_of(8, 2, bytes([8, 1, 0, 0, 8, 0, 0, 0]))


def rle_bmp_of(width: int, height: int, runs: bytes) -> bytes:
    """Return a BMP with these runs of red (0) and blue (1), from the bottom."""
    palette = b"\0\0\xff\0" + b"\xff\0\0\0"  # blue, green, red, reserved
    data = runs + bytes([0, 1])
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 2, 2)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


def gif_of_frames(count: int) -> bytes:
    """Return a GIF whose first frame is red, followed by frames of one pixel."""
    first = saved(Image.new("P", (8, 8), 0), "GIF").removesuffix(b";")
    palette_at = 13
    first = first[:palette_at] + bytes(RED) + first[palette_at + 3 :]
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return first + frame * (count - 1) + b";"


def webp_with_canvas(width: int, height: int) -> bytes:
    """Return the beginning of an extended WebP with a canvas of this size, and no picture in it."""
    body = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0"
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def boxes(brand: bytes) -> bytes:
    """Return the beginning of a file in ISO's base media format."""
    return struct.pack(">I", 24) + b"ftyp" + brand + b"\0\0\0\0" + brand + b"iso8" + b"\0" * 64
