"""Images with fewer tokens: fewer tiles, a smaller budget, or a smaller picture."""

from math import sqrt
from typing import Any

from llmctl.generation.pictures import Picture

_MIN_SIDE = 8  # pixels, below which a picture is not shrunk further


def smaller_settings(image_processor: Any) -> list[dict[str, Any]]:
    """Return settings of transformers' image processor with which it makes fewer and fewer tokens of an image.

    With these processors, the number of tokens does not follow the size of the picture: they enlarge it to a number of
    tiles (InternVL, Idefics 3, SmolVLM) or to a budget of tokens (Gemma 4). The others have none.
    """
    if isinstance(budget := getattr(image_processor, "max_soft_tokens", None), int):
        return [{"max_soft_tokens": n} for n in (560, 280, 140, 70) if n < budget]  # Gemma 4 accepts only these
    if getattr(image_processor, "do_image_splitting", False):
        return [{"do_image_splitting": False}]
    if hasattr(image_processor, "crop_to_patches"):
        patches = int(getattr(image_processor, "max_patches", 1))
        fewer = [{"crop_to_patches": True, "max_patches": n} for n in range(patches - 1, 1, -1)]
        return [*fewer, {"crop_to_patches": False}]
    return []


def shrunk(picture: Picture, *, tokens: int, limit: int) -> Picture | None:
    """Return a smaller picture of the same shape; None if it is as small as it can be.

    Args:
        tokens: Tokens of the picture.
        limit: Tokens that it may have. Processors round sizes, so one step may not be enough.
    """
    factor = min(sqrt(limit / tokens), 0.9)
    width, height = (max(1, int(side * factor)) for side in (picture.width, picture.height))
    if min(width, height) < _MIN_SIDE:
        return None
    from PIL.Image import Resampling

    image = picture.image().resize((width, height), Resampling.BICUBIC)
    return Picture.of(width=width, height=height, pixels=image.tobytes())
