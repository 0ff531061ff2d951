"""The memory that images need: the towers that see them, their features, and the work of the towers. Pure."""

from dataclasses import dataclass
from typing import Any

from llmctl.config import Config
from llmctl.errors import UserError
from llmctl.model.info import ModelInfo
from llmctl.plan.cache_memory import DTYPE_SIZE_BYTES
from llmctl.plan.decision import Decision
from llmctl.plan.memory import ImageMemory, tensor_bytes
from llmctl.units import format_bytes

# Bytes of features that a loaded model keeps, for images that come again.
FEATURE_CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class ImageRequest:
    """Images to plan for.

    Attributes:
        count: Number of images.
        width: Pixels of a row.
        height: Rows.
        tokens: Tokens of one image in a prompt, or None if the model's processor could not be asked.
        input_bytes: Bytes of the tensors that the processor makes of one image.
    """

    count: int
    width: int
    height: int
    tokens: int | None = None
    input_bytes: int = 0


def loads_towers(config: Config, info: ModelInfo) -> bool:
    """Return True if the towers are loaded at the start. Raise UserError if the model has none."""
    if config.load.images == "always" and not info.towers:
        raise UserError(f"{info.source} takes no images", hint="omit load.images")
    return config.load.images == "always"


def image_memory(info: ModelInfo, images: ImageRequest | None, *, dtype: str) -> ImageMemory:
    """Return the memory for images.

    Args:
        images: The images; None for any number of an unknown size.
        dtype: The dtype of the language model, which the towers get, too.
    """
    return ImageMemory(
        tower_bytes=_tower_bytes(info, dtype),
        feature_bytes=_feature_bytes(info, images, dtype),
        encoder_bytes=_encoder_bytes(info, images, dtype),
    )


def _tower_bytes(info: ModelInfo, dtype: str) -> int:
    """Return the bytes of the towers in memory: they are not quantised."""
    return sum(
        tensor_bytes(tensor, dtype=dtype, is_float32=info.stays_in_float32(tensor.name, dtype=dtype))
        for tensor in info.left_out
    )


def _feature_bytes(info: ModelInfo, images: ImageRequest | None, dtype: str) -> int:
    """Return the bytes of the features that are kept: a row for each token, and one for each level of DeepStack."""
    if images is None:
        return FEATURE_CACHE_BYTES
    levels = 1 + len(_vision(info).get("deepstack_visual_indexes") or ())
    row = int(info.text_config.get("hidden_size") or 0) * levels * DTYPE_SIZE_BYTES[dtype]
    one = (_patches(info, images) if images.tokens is None else images.tokens) * row
    return max(min(images.count * one, FEATURE_CACHE_BYTES), one)


def _encoder_bytes(info: ModelInfo, images: ImageRequest | None, dtype: str) -> int:
    """Return the peak bytes of intermediate results for one image, roughly, as `activation_bytes` counts them.

    The tensors of an image are float32, and are converted to the dtype of the towers.
    """
    vision = _vision(info)
    hidden = _first_int(vision, "hidden_size", "embed_dim", "width")
    inner = _first_int(vision, "intermediate_size") or 4 * hidden
    rows = _patches(info, images) * (8 * hidden + 4 * inner) * DTYPE_SIZE_BYTES[dtype]
    return 2 * _input_bytes(info, images) + rows


def _input_bytes(info: ModelInfo, images: ImageRequest | None) -> int:
    """Return the bytes of the tensors of one image: float32 pixels, as many as it has or as the towers expect."""
    if images is not None and images.input_bytes:
        return images.input_bytes
    side = _first_int(_vision(info), "image_size") or 1024
    return 3 * 4 * max(side**2, images.width * images.height if images is not None else 0)


def _patches(info: ModelInfo, images: ImageRequest | None) -> int:
    """Return the patches of one image: at least as many as it has tokens."""
    return _input_bytes(info, images) // (3 * 4 * (_first_int(_vision(info), "patch_size") or 14) ** 2)


def _vision(info: ModelInfo) -> dict[str, Any]:
    found = info.config.get("vision_config")
    return dict(found) if isinstance(found, dict) else {}


def _first_int(values: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := values.get(name), int)), 0)


def explain_towers(config: Config, info: ModelInfo, *, dtype: str) -> list[Decision]:
    """Return a decision that says when the towers of a composite model are loaded."""
    if not info.towers:
        return []
    names, size = ", ".join(info.towers), format_bytes(sum(info.towers.values()))
    if config.load.images == "always":
        loaded = format_bytes(_tower_bytes(info, dtype))
        return [Decision("images", names, f"{loaded} in {dtype}, loaded at the start: load.images")]
    if config.load.images == "never":
        return [Decision("left_out", names, f"{size} on disk: images are turned off (load.images)")]
    if not info.takes_images:
        return [Decision("left_out", names, f"{size} on disk: llmctl reads text, which does not need it")]
    reason = f"{size} on disk: text does not need it; loaded with the first image (load.images: always: at the start)"
    return [Decision("left_out", names, reason)]
