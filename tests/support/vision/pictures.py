"""Pictures for tests, made by code: the same on every machine."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = ((40, 40), (90, 30), (64, 100))  # width and height: a square, a wide and a tall picture


@cache
def picture(number: int) -> "Image":
    """Return the picture of a number: a gradient and noise in the colours and the size of this number."""
    import numpy as np
    from PIL import Image

    width, height = SIZES[number % len(SIZES)]
    chance = np.random.default_rng(number)
    across, down = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    corners = chance.uniform(0, 255, (3, 3))
    gradient = corners[0] * across + corners[1] * down + corners[2] * (1 - across) * (1 - down)
    noise = chance.normal(0, 40, (height, width, 3))
    return Image.fromarray((gradient + noise).clip(0, 255).astype(np.uint8))
