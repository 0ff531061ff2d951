"""The images that `llmctl plan --images` plans for."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import LlmctlError, MachineError, RemoteError, UserError
from llmctl.generation.image_tokens import ImageTokens, count_image_tokens
from llmctl.generation.pictures.picture import DEFAULT_LIMITS
from llmctl.hub.describe import fetch_processor
from llmctl.model.info import ModelInfo
from llmctl.plan.images import ImageRequest
from llmctl.units import format_bytes

_SIZE = re.compile(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})")


@dataclass(frozen=True)
class ImagesToPlan:
    """Images of one size.

    Attributes:
        count: Number of images.
        width: Pixels of a row.
        height: Rows.
        tokens: Tokens of one image, or None if they are unknown.
        all_tokens: Tokens of all images together; 0 if they are unknown.
        input_bytes: Bytes of the tensors that the processor makes of one image.
        backend: The package that resizes images.
        unknown: Why the tokens are unknown, and what to do about it.
    """

    count: int
    width: int
    height: int
    tokens: int | None
    all_tokens: int
    input_bytes: int = 0
    backend: str | None = None
    unknown: str | None = None

    @property
    def request(self) -> ImageRequest:
        """The images as the plan takes them."""
        return ImageRequest(self.count, self.width, self.height, self.tokens, self.input_bytes)

    def rows(self, info: ModelInfo) -> list[tuple[str, str]]:
        """Return the rows that describe the images."""
        towers = f"{', '.join(info.towers)}: {format_bytes(sum(info.towers.values()))} on disk; counted in the totals"
        if self.tokens is None:
            return [("towers", towers), ("images", f"their tokens are unknown and not counted: {self.unknown}")]
        one = f"an image of {self.width} x {self.height} takes {self.tokens:,} tokens for this model"
        all_of_them = f"; {self.count} take {self.all_tokens:,}" if self.count > 1 else ""
        return [("towers", towers), ("images", f"{one}{all_of_them}; {self.backend} resizes them")]


def images_to_plan(info: ModelInfo, *, count: int, size: str, max_tokens: int | None, offline: bool) -> ImagesToPlan:
    """Count the tokens of images of a size such as `1024x768` with the model's own processor.

    Without a package that the processor needs, or without its files, the tokens are unknown.

    Args:
        max_tokens: Maximum tokens to which an image is shrunk; None for the processor's own limits.

    Raises:
        UserError: the size cannot be read, or the model takes no images or refuses this size.
    """
    width, height = _width_and_height(size)
    if not info.takes_images:
        raise UserError(f"{info.source} takes no images", hint="omit --images")
    try:
        counted = _count(info, width=width, height=height, count=count, max_tokens=max_tokens, offline=offline)
    except (MachineError, RemoteError) as error:
        return ImagesToPlan(count, width, height, None, 0, unknown=_reason(error))
    return ImagesToPlan(
        count,
        width,
        height,
        counted.tokens,
        counted.all_tokens,
        input_bytes=counted.input_bytes,
        backend=counted.backend,
    )


def _reason(error: LlmctlError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _width_and_height(size: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(size.strip())
    if match is None or not int(match[1]) or not int(match[2]):
        raise UserError(f"{size} is not the size of an image", hint="--image-size 1024x768: width and height in pixels")
    width, height = int(match[1]), int(match[2])
    if max(width, height) > DEFAULT_LIMITS.side or width * height > DEFAULT_LIMITS.pixels:
        raise UserError(
            f"llmctl reads no image of {width} x {height} pixels",
            hint=f"at most {DEFAULT_LIMITS.pixels / 1e6:.0f} million pixels, and {DEFAULT_LIMITS.side} in a row",
        )
    return width, height


def _count(info: ModelInfo, *, offline: bool, **image: Any) -> ImageTokens:
    """Count with the processor in the model's folder, or from the Hub."""
    if info.folder is not None:
        return count_image_tokens(info.folder, info, **image)
    if offline:
        raise RemoteError("the processor is not on this machine", hint="omit --offline")
    with tempfile.TemporaryDirectory() as name:
        fetch_processor(info.source, commit=info.commit, folder=Path(name))
        return count_image_tokens(Path(name), info, **image)
