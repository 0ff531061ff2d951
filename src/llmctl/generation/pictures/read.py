"""Reading of pictures from files, bytes and PIL images."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.pictures.decode import check_size, damaged, decode_in_child, upright_rgb
from llmctl.generation.pictures.formats import RefusedError
from llmctl.generation.pictures.picture import DEFAULT_LIMITS, Picture, PictureLimits
from llmctl.machine.sandbox import Binary, LimitExceededError, run_bounded_each
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from PIL import Image

PictureSource: TypeAlias = "bytes | Path | Image.Image"


def read_pictures(
    sources: Sequence[PictureSource], *, limits: PictureLimits = DEFAULT_LIMITS
) -> list[Picture | LlmctlError]:
    """Read pictures. Return a picture or an error for each source, in order.

    Files and bytes are decoded in a child process, with limits of time and memory. PIL images are converted in this
    process; of an animation, the frame that is selected.

    Raises:
        MachineError: Pillow is not installed.
    """
    if not sources:
        return []
    _import_pillow()
    encoded = [source for source in sources if isinstance(source, bytes | Path)]
    works = [partial(decode_in_child, source, limits, parent=os.getpid()) for source in encoded]
    outcomes = run_bounded_each(
        works, seconds=limits.seconds, extra_bytes=limits.memory_bytes, result_bytes=limits.pixel_bytes
    )
    return list(_read_each(sources, outcomes, limits))


def _read_each(
    sources: Sequence[PictureSource], outcomes: Iterator[Any], limits: PictureLimits
) -> Iterator[Picture | LlmctlError]:
    for number, source in enumerate(sources, 1):
        name = str(source) if isinstance(source, Path) else f"image {number}"
        try:
            yield (
                _from_child(next(outcomes), limits) if isinstance(source, bytes | Path) else _converted(source, limits)
            )
        except RefusedError as error:
            yield UserError(f"{name} {error.reason}", hint=error.hint)


def _from_child(outcome: Any, limits: PictureLimits) -> Picture:
    """Return the picture that the child decoded.

    Raises:
        RefusedError: the child refused it, or exceeded a limit.
    """
    if isinstance(outcome, Binary):
        width, height = outcome.value
        return Picture.of(width=width, height=height, pixels=outcome.data)
    if isinstance(outcome, LimitExceededError):
        within = f"{limits.seconds:g} s and {format_bytes(limits.memory_bytes)} of memory"
        raise RefusedError(
            f"was not decoded within {within}, or crashed its decoder", hint="open it in a viewer and save it again"
        )
    if isinstance(outcome, Exception):
        raise outcome
    raise RefusedError(outcome["reason"], hint=outcome["hint"])


def _converted(source: Any, limits: PictureLimits) -> Picture:
    """Return the picture of a PIL image.

    Raises:
        RefusedError: it is another kind of object, too large, or cannot be loaded.
    """
    from PIL import Image

    if not isinstance(source, Image.Image):
        kind = type(source).__name__
        raise RefusedError(f"is of type {kind}", hint="give a pathlib.Path, the bytes of a file, or a PIL image")
    check_size(source.size, limits)
    try:
        rgb = upright_rgb(source)
    except (RefusedError, MemoryError):
        raise
    except Exception as error:  # an image that is not loaded yet is decoded here
        raise damaged(source.format if isinstance(source.format, str) else None, error) from error
    return Picture.of(width=rgb.width, height=rgb.height, pixels=rgb.tobytes())


def _import_pillow() -> None:
    """Import Pillow and its decoders, so that the forked child need not.

    Raises:
        MachineError: it is not installed.
    """
    try:
        from PIL import (
            AvifImagePlugin,  # noqa: F401
            Image,
            MpoImagePlugin,  # noqa: F401 (photos of several pictures, in files of JPEG)
            TiffImagePlugin,  # noqa: F401
            WebPImagePlugin,  # noqa: F401
        )
    except ImportError as error:
        raise MachineError(
            "images need Pillow 12 or newer, which is not installed", hint="pip install 'llmctl-hf[images]'"
        ) from error
    Image.preinit()
