"""Reading of untrusted pictures: every format and mode, and a set of hostile files."""

import hashlib
import os
import random
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.pictures import Picture, PictureLimits, read_pictures
from llmctl.platform_support import peak_memory_bytes, process_status_bytes
from support.picture_files import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    RED,
    WHITE,
    boxes,
    chunk,
    gif_of_frames,
    interlaced_png,
    png,
    quarters,
    rle_bmp,
    rle_bmp_of,
    saved,
    turned,
    webp_with_canvas,
)

Colour = tuple[int, int, int]
LIMITS = PictureLimits(pixels=4_000_000, file_bytes=2_000_000, seconds=10)


def read(source: Any, limits: PictureLimits = LIMITS) -> Picture | LlmctlError:
    [outcome] = read_pictures([source], limits=limits)
    return outcome


@dataclass(frozen=True)
class Shown:
    """A file that is read: colours of the middle of its four quarters, or one colour of all."""

    colours: tuple[Colour, ...]
    size: tuple[int, int] = (48, 32)
    tolerance: int = 0


QUARTERS = Shown((RED, GREEN, BLUE, WHITE))
NEAR_QUARTERS = Shown((RED, GREEN, BLUE, WHITE), tolerance=12)


def plain(colour: Colour, size: tuple[int, int] = (8, 8), tolerance: int = 0) -> Shown:
    return Shown((colour,) * 4, size, tolerance)


def _rgba() -> Image.Image:
    """Return red whose right half is transparent."""
    image = Image.new("RGBA", (48, 32), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (24, 0, 48, 32))
    return image


def _half_palette() -> Image.Image:
    """Return a palette image: red on the left, and on the right a colour that the file declares transparent."""
    image = Image.new("P", (48, 32), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (24, 0, 48, 32))
    return image


LEFT_RED = Shown((RED, WHITE, RED, WHITE))
SIXTEEN = Image.new("I;16", (8, 8), 0x8000)
ANIMATION: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (48, 32), BLACK)] * 3}

SHOWN: dict[str, tuple[Callable[[], bytes], Shown]] = {
    "PNG": (lambda: saved(quarters(), "PNG"), QUARTERS),
    "JPEG": (lambda: saved(quarters(), "JPEG", quality=95, subsampling=0), NEAR_QUARTERS),
    "progressive JPEG": (lambda: saved(quarters(), "JPEG", quality=95, progressive=True), NEAR_QUARTERS),
    "WebP": (lambda: saved(quarters(), "WEBP", quality=95), Shown((RED, GREEN, BLUE, WHITE), tolerance=30)),
    "lossless WebP": (lambda: saved(quarters(), "WEBP", lossless=True), QUARTERS),
    "GIF": (lambda: saved(quarters(), "GIF"), QUARTERS),
    "BMP": (lambda: saved(quarters(), "BMP"), QUARTERS),
    "run-length BMP": (rle_bmp, Shown((RED, RED, BLUE, BLUE), (8, 2))),
    "TIFF": (lambda: saved(quarters(), "TIFF"), QUARTERS),
    "compressed TIFF": (lambda: saved(quarters(), "TIFF", compression="tiff_lzw"), QUARTERS),
    "TIFF of four pages": (lambda: saved(quarters(), "TIFF", **ANIMATION), QUARTERS),
    "AVIF": (lambda: saved(quarters(), "AVIF", quality=95), Shown((RED, GREEN, BLUE, WHITE), tolerance=30)),
    "animated PNG": (lambda: saved(quarters(), "PNG", **ANIMATION), QUARTERS),
    "animated WebP": (lambda: saved(quarters(), "WEBP", lossless=True, **ANIMATION), QUARTERS),
    "animated GIF": (lambda: saved(quarters(), "GIF", **ANIMATION), QUARTERS),
    "GIF of 10,000 frames": (lambda: gif_of_frames(10_000), plain(RED)),
    "JPEG with several pictures (MPO)": (lambda: saved(quarters(), "MPO", quality=95, **ANIMATION), NEAR_QUARTERS),
    "interlaced PNG": (interlaced_png, plain(RED)),
    "1-bit PNG": (lambda: saved(Image.new("1", (8, 8), 1), "PNG"), plain(WHITE)),
    "grey PNG": (lambda: saved(Image.new("L", (8, 8), 128), "PNG"), plain(GREY)),
    "16-bit grey PNG": (lambda: saved(SIXTEEN, "PNG"), plain(GREY)),
    "16-bit RGB PNG": (
        lambda: png(8, 8, depth=16, data=(b"\0" + b"\xff\xff\0\0\0\0" * 8) * 8),
        plain(RED),
    ),
    "16-bit grey PNG with a transparent value": (
        lambda: png(8, 8, depth=16, kind=0, data=(b"\0" + b"\1\2" * 8) * 8, chunks=chunk(b"tRNS", b"\1\2")),
        plain(WHITE),
    ),
    "16-bit grey TIFF": (lambda: saved(SIXTEEN, "TIFF"), plain(GREY)),
    "16-bit grey TIFF, big-endian": (
        lambda: saved(Image.frombytes("I;16B", (8, 8), b"\x80\0" * 64), "TIFF"), plain(GREY),
    ),
    "palette PNG": (lambda: saved(quarters().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), QUARTERS),
    "palette PNG with a transparent colour": (lambda: saved(_half_palette(), "PNG", transparency=1), LEFT_RED),
    "palette PNG with an alpha table": (lambda: saved(_half_palette(), "PNG", transparency=b"\xff\0"), LEFT_RED),
    "GIF with a transparent colour": (lambda: saved(_half_palette(), "GIF", transparency=1), LEFT_RED),
    "RGB PNG with a transparent colour": (
        lambda: saved(Image.new("RGB", (8, 8), RED), "PNG", transparency=RED), plain(WHITE),
    ),
    "grey PNG with a transparent value": (
        lambda: saved(Image.new("L", (8, 8), 9), "PNG", transparency=9), plain(WHITE),
    ),
    "1-bit PNG with a transparent value": (
        lambda: png(8, 8, depth=1, kind=0, data=b"\0\0" * 8, chunks=chunk(b"tRNS", b"\0\0")), plain(WHITE),
    ),
    "RGBA PNG": (lambda: saved(_rgba(), "PNG"), LEFT_RED),
    "RGBA WebP": (lambda: saved(_rgba(), "WEBP", lossless=True), LEFT_RED),
    "half transparent grey PNG": (lambda: saved(Image.new("LA", (8, 8), (0, 128)), "PNG"), plain((127, 127, 127))),
    "CMYK JPEG": (
        lambda: saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), plain(RED, tolerance=4),
    ),
    "CMYK TIFF": (lambda: saved(Image.new("CMYK", (8, 8), (255, 0, 255, 0)), "TIFF"), plain(GREEN)),
    "JPEG with a damaged colour profile": (
        lambda: saved(quarters(), "JPEG", quality=95, subsampling=0, icc_profile=b"no profile" * 100), NEAR_QUARTERS,
    ),
    "JPEG with damaged EXIF": (
        lambda: saved(quarters(), "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        NEAR_QUARTERS,
    ),
    **{f"JPEG turned by EXIF {n}": ((lambda n=n: turned(n)), NEAR_QUARTERS) for n in range(1, 10)},
    **{f"{kind} turned by EXIF 6": ((lambda kind=kind: turned(6, kind)), QUARTERS) for kind in ("PNG", "TIFF")},
}  # fmt: skip

NOISE = Image.frombytes("RGB", (64, 64), random.Random(1).randbytes(3 * 64 * 64))
ZIPPED = zlib.compress(bytes(200_000_000), 1)
BOMB = png(3000, 3000, kind=0, data=bytes(3001 * 3000))
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "is empty"),
    "random bytes": (lambda: random.Random(1).randbytes(5000), "is not a picture in a known format"),
    "text": (lambda: b"This is not a picture.\n", "is a text file, not a picture"),
    "long text": (lambda: b"x" + "ä".encode() * 5000, "is a text file, not a picture"),
    "web page": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "is a web page, not a picture"),
    "pointer of Git LFS": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS",
    ),
    "SVG": (lambda: b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
    "HEIC": (lambda: boxes(b"heic"), "is a HEIC picture"),
    "MP4": (lambda: boxes(b"isom"), "is a video"),
    "AVIF without a picture": (lambda: boxes(b"avif"), "is an AVIF picture that is truncated"),
    "ICO": (lambda: saved(quarters(width=32), "ICO"), r"is a Windows icon \(ICO\)"),
    "PDF": (lambda: saved(quarters(), "PDF"), "is a PDF document"),
    "EPS": (lambda: saved(quarters(), "EPS"), "is a PostScript file"),
    "PSD": (lambda: b"8BPS\0\1" + bytes(100), "is a Photoshop file"),
    "JPEG 2000": (lambda: saved(quarters(), "JPEG2000"), "is a JPEG 2000 picture"),
    "PPM": (lambda: saved(quarters(), "PPM"), "is a PPM picture"),
    "truncated PNG": (lambda: saved(NOISE, "PNG")[:9000], "is a PNG picture that is truncated"),
    "truncated JPEG": (lambda: saved(NOISE, "JPEG")[:2000], "is a JPEG picture that is truncated"),
    "truncated WebP": (lambda: saved(NOISE, "WEBP")[:2000], "is a WebP picture that is truncated"),
    "truncated TIFF": (lambda: saved(quarters(), "TIFF")[:900], "is a TIFF picture that is truncated"),
    "TIFF whose compression is damaged": (
        lambda: saved(NOISE, "TIFF", compression="tiff_lzw").replace(b"\x80", b"\xff"),
        "is a TIFF picture that is truncated",
    ),
    "truncated BMP": (lambda: saved(quarters(), "BMP")[:900], "is a BMP picture that is truncated"),
    "truncated GIF": (lambda: saved(quarters(), "GIF")[:20], "is a GIF picture that is truncated"),
    "truncated AVIF": (lambda: saved(NOISE, "AVIF")[:2000], "is an AVIF picture that is truncated"),
    "header of a PNG alone": (lambda: b"\x89PNG\r\n\x1a\n", "is a PNG picture that is truncated"),
    "PNG with a wrong checksum": (
        lambda: saved(quarters(), "PNG").replace(b"IDAT", b"IDAX"), "is a PNG picture that is truncated",
    ),
    "PNG of 0 x 8 pixels": (lambda: png(0, 8), "(is a PNG picture that is truncated|has no pixels)"),
    "GIF of 0 x 0 pixels": (lambda: b"GIF89a\0\0\0\0\0\0\0;", "(is a GIF picture that is truncated|has no pixels)"),
    "PNG that unpacks to more than the limit": (lambda: BOMB, "has 3,000 x 3,000 pixels, more than 4,000,000"),
    "PNG that claims 2 billion x 2 billion pixels": (
        lambda: png(2**31 - 1, 2**31 - 1), "has 2,147,483,647 x 2,147,483,647 pixels",
    ),
    "PNG with a long side": (lambda: png(40_000, 1), "has 40,000 x 1 pixels, and a side may have 32,768"),
    "PNG with a text that unpacks to 200 MB": (
        lambda: png(8, 8, chunks=chunk(b"zTXt", b"a\0\0" + ZIPPED)), "is a PNG picture that is truncated",
    ),
    "WebP that claims 16,000 x 16,000 pixels": (lambda: webp_with_canvas(16_000, 16_000), "has 16,000 x 16,000 pixels"),
    "GIF that claims 65,535 x 65,535 pixels": (
        lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;", "has 65,535 x 65,535 pixels",
    ),
    "TIFF with samples of 32 bits": (lambda: saved(Image.new("F", (8, 8), 0.5), "TIFF"), "has samples of 32 bits"),
    "file over the limit": (lambda: BOMB + bytes(2_000_000), "is larger than 2 MB"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shown() -> dict[str, Picture | LlmctlError]:
    """Return the outcome of each file of `SHOWN`, from one call."""
    return dict(zip(SHOWN, read_pictures([make() for make, _ in SHOWN.values()], limits=LIMITS), strict=True))


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_of_every_kind_is_decoded(name: str, shown: dict[str, Picture | LlmctlError]) -> None:
    picture, expected = shown[name], SHOWN[name][1]
    assert isinstance(picture, Picture), picture
    width, height = picture.width, picture.height
    assert (width, height) == expected.size
    image = picture.image()
    middles = ((x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3))
    for middle, colour in zip(middles, expected.colours, strict=True):
        pixel = image.getpixel(middle)
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= expected.tolerance, (middle, pixel)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Picture | LlmctlError]]:
    """Return the message's first words and the outcome for each file of `REFUSED`, as a file and as bytes, in one call.

    The last source is a picture, which is decoded after all of them.
    """
    contents = [make() for make, _ in REFUSED.values()]
    files = []
    for number, content in enumerate(contents):
        files.append(tmp_path_factory.mktemp("hostile", numbered=True) / f"photo{number}.png")
        files[-1].write_bytes(content)
    *outcomes, last = read_pictures([*files, *contents, saved(quarters(), "PNG")], limits=LIMITS)
    assert isinstance(last, Picture)
    names = [*map(str, files), *(f"image {len(files) + n}" for n, _ in enumerate(contents, 1))]
    keys = [*REFUSED, *(f"{name} (bytes)" for name in REFUSED)]
    return dict(zip(keys, zip(names, outcomes, strict=True), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_read_is_refused_with_the_reason(
    name: str, refused: dict[str, tuple[str, Picture | LlmctlError]]
) -> None:
    for key in (name, f"{name} (bytes)"):
        source, error = refused[key]
        assert isinstance(error, UserError), error
        assert re.match(f"{re.escape(source)} {REFUSED[name][1]}", error.message), error.message
        assert error.hint


def test_decoders_write_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    read_pictures([make() for make, _ in REFUSED.values()], limits=LIMITS)
    assert capfd.readouterr() == ("", "")


def _unreadable(path: Path) -> None:
    path.touch(mode=0)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**12)


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing file": (lambda path: path, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder, not a file"),
    "named pipe": (os.mkfifo, "is a pipe, not a file"),
    "link to an endless device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "link to a terminal": (lambda path: path.symlink_to("/dev/tty"), "is a device, not a file"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "does not exist"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels"),
    "unreadable file": (_unreadable, "(cannot be read: Permission denied|is empty)"),
    "sparse file of 1 TB": (_sparse, "is larger than 2 MB"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_a_path_that_is_no_regular_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    make, reason = SPECIAL[name]
    path = tmp_path / "photo.png"
    make(path)
    began = time.monotonic()
    error = read(path)
    assert time.monotonic() - began < LIMITS.seconds / 2
    assert isinstance(error, UserError)
    assert re.match(f"{path} {reason}", error.message), error.message


def test_a_path_with_a_null_byte_is_refused() -> None:
    error = read(Path("photo\0.png"))
    assert isinstance(error, UserError)
    assert "cannot be read" in error.message


def test_a_link_to_a_picture_is_followed(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(saved(quarters(), "PNG"))
    (tmp_path / "link").symlink_to("photo.png")
    assert isinstance(read(tmp_path / "link"), Picture)


def test_equal_pictures_have_equal_hashes_however_they_were_encoded() -> None:
    sources = [saved(quarters(), "PNG"), saved(quarters(), "BMP"), turned(6, "PNG"), quarters(), quarters(width=32)]
    png_, bmp, turned_, given, other = read_pictures(sources)
    assert png_ == bmp == turned_ == given != other
    assert isinstance(png_, Picture)
    assert len(png_.pixels) == 3 * 48 * 32
    assert png_.sha256 == hashlib.sha256(b"48 x 32\n" + quarters().tobytes()).hexdigest()
    assert len(repr(png_)) < 200


def test_equal_bytes_of_another_shape_are_another_picture() -> None:
    wide, tall = read_pictures([Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))])
    assert wide != tall


def test_pixels_that_do_not_fit_the_size_are_an_error() -> None:
    with pytest.raises(ValueError, match="are not the pixels"):
        Picture.of(width=3, height=3, pixels=b"123")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "HSV"])
def test_a_pil_image_of_every_mode_is_converted(mode: str) -> None:
    image = Image.new(mode, (6, 4))
    picture = read(image)
    assert isinstance(picture, Picture), picture
    assert (picture.width, picture.height, image.mode, image.size) == (6, 4, mode, (6, 4))
    assert picture.pixels == bytes(WHITE if mode in ("LA", "La", "PA", "RGBA", "RGBa", "CMYK") else BLACK) * 24


def test_a_pil_image_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(saved(NOISE, "PNG")[:9000])
    with Image.open(tmp_path / "cut.png") as cut:
        outcomes = read_pictures([cut, Image.new("F", (4, 4)), Image.new("RGB", (0, 4)), "photo.png", NOISE])  # type: ignore[list-item]
    *errors, last = outcomes
    assert isinstance(last, Picture)
    for error, reason in zip(errors, ("truncated", "32 bits", "no pixels", "of type str"), strict=True):
        assert isinstance(error, UserError)
        assert error.message.startswith("image ")
        assert reason in error.message


def test_slow_decoding_is_ended_and_the_next_picture_is_read() -> None:
    slow = b"\1\0" * 4_000_000  # Pillow decodes runs of one pixel in a loop of Python
    slow = rle_bmp_of(2000, 2000, slow)
    limits = PictureLimits(seconds=0.4)
    began = time.monotonic()
    error, picture = read_pictures([slow, saved(quarters(), "PNG")], limits=limits)
    assert time.monotonic() - began < 5
    assert isinstance(error, UserError)
    assert "image 1 was not decoded within 0.4 s and 2.35 GB of memory" in error.message
    assert isinstance(picture, Picture)


def test_memory_is_bounded_and_given_back() -> None:
    large = saved(Image.new("RGB", (2000, 2000)), "PNG")
    read(large)
    before, peak = process_status_bytes("VmRSS"), peak_memory_bytes()
    assert before is not None
    for _ in range(5):
        picture = read(large)
        assert isinstance(picture, Picture)
    del picture
    read_pictures([make() for name, (make, _) in REFUSED.items() if "claims" in name or "unpacks" in name])
    after = process_status_bytes("VmRSS")
    assert after is not None
    assert after - before < 30_000_000
    assert peak_memory_bytes() - peak < 100_000_000


def test_settings_of_pillow_in_this_process_neither_change_nor_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    cut, whole = read_pictures([saved(NOISE, "PNG")[:9000], saved(NOISE, "PNG")])
    assert isinstance(cut, UserError)
    assert isinstance(whole, Picture)
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 10)


def test_without_fork_pictures_are_decoded_in_a_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llmctl.machine.sandbox.CAN_FORK_SAFELY", False)
    sources = [saved(quarters(), "PNG"), BOMB, b"text", tmp_path, png(2**31 - 1, 2**31 - 1), turned(6, "PNG")]
    first, *errors, last = read_pictures(sources, limits=LIMITS)
    assert isinstance(first, Picture)
    assert first == last
    for error in errors:
        assert isinstance(error, UserError)


def test_without_pillow_the_error_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_pictures([]) == []
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MachineError) as caught:
        read_pictures([b"picture"])
    assert caught.value.hint == "pip install 'llmctl-hf[images]'"


def test_pillow_is_imported_with_the_first_picture_only() -> None:
    code = "import sys, llmctl.generation.pictures as p; p.read_pictures([]); sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
