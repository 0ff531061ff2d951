"""Composite models: a language model with towers for images, video or sound, and with projectors between them.

Text does not pass through towers and projectors, so llmctl leaves them out. They are recognised by the names of their
modules, which are the same in checkpoints and in transformers, or nearly so. A module with an unknown name is loaded.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmctl.model.checkpoint import Tensor

_TOWER = re.compile(
    r"vision|visual|image|video|audio|speech|projector|aligner|connector|merger|patch_merge|resampler|qformer|perceiver"
    r"|vqmodel|vqgan|^vit(_|$)|^generation_|^sam_model$|^qwen2_model$|^mlp1$|^mlp_AR$"
)
_PARTS = re.compile(r"(vision|visual|image|video|audio|speech|vq|protein)\w*_config$")
# Composite models whose architecture is named like a language model.
_NAMED_CAUSAL = ("fuyu", "git")
# Towers without a prefix: the checkpoint is a vision transformer and a language model in one namespace.
_UNPREFIXED = {"cosmos3_omni": ("blocks", "patch_embed", "pos_embed")}
# Modules with the name of a tower through which text passes: it computes embeddings of tokens beyond the vocabulary.
_KEPT = {"gemma3n": ("embed_vision", "embed_audio")}


def is_composite(config: Mapping[str, Any]) -> bool:
    """Return True if a config.json describes a language model with towers."""
    if config.get("model_type") in _NAMED_CAUSAL:
        return True
    architecture = str((config.get("architectures") or [""])[0])
    has_parts = any(_PARTS.match(key) and isinstance(value, dict) for key, value in config.items())
    return has_parts and not architecture.endswith("ForCausalLM")


def tower_of(name: str, model_type: str) -> str | None:
    """Return the tower that contains a tensor or a module, `model.vision_tower`, or None.

    Args:
        name: The name of a tensor, or the name of a module with a dot at its end.
    """
    *path, _ = name.split(".")
    for number, part in enumerate(path):
        if part.isdigit():
            return None
        unprefixed = number == 0 and part in _UNPREFIXED.get(model_type, ())
        if part not in _KEPT.get(model_type, ()) and (unprefixed or _TOWER.search(part)):
            return ".".join(path[: number + 1])
    return None


def split_towers(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the tensors of the language model, and those of the towers of a composite model."""
    tensors = tuple(tensors)
    if not is_composite(config):
        return tensors, ()
    model_type = str(config.get("model_type"))
    towers = {tensor.name for tensor in tensors if tower_of(tensor.name, model_type) is not None}
    return (
        tuple(tensor for tensor in tensors if tensor.name not in towers),
        tuple(tensor for tensor in tensors if tensor.name in towers),
    )


def tower_bytes(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> dict[str, int]:
    """Return the bytes on disk of each tower, given the tensors of all towers."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        tower = tower_of(tensor.name, str(config.get("model_type"))) or tensor.name
        sizes[tower] = sizes.get(tower, 0) + tensor.size_bytes
    return sizes
