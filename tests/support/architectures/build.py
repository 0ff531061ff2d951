"""Builds a tiny random checkpoint of an architecture, as a Hub repository would hold it."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from support.architectures.sizes import CANNOT, HEADS, LAYER_KINDS, SIZES, SPECIAL, TOWER_SIZES, VOCABULARY
from support.tiny import write_tokenizer


class CannotBuildError(Exception):
    """transformers has no way to make this type from a small configuration."""


MAX_PARAMETERS = 25_000_000
_TOKEN_FIELDS = ("_token_id", "_token_index")
_SPECIAL_TOKENS = ("bos", "eos", "pad")
_TOWERS = ("vision", "audio", "image", "vq", "sam", "qformer", "encoder")


def build(model_type: str, folder: Path, *, is_composite: bool = False) -> str:
    """Write the checkpoint in bfloat16, with its tokenizer. Return the name of the model class.

    Raises:
        CannotBuildError: with the reason.
    """
    import torch

    if model_type in CANNOT:
        raise CannotBuildError(CANNOT[model_type])
    config = make_config(model_type)
    try:
        with torch.device("meta"):
            empty = auto_class(is_composite=is_composite).from_config(config)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        name = auto_class(is_composite=is_composite).__name__
        raise CannotBuildError(f"transformers' {name} takes only a part of its configuration") from error
    count = sum(parameter.numel() for parameter in empty.parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count:,} parameters are not tiny")
    torch.manual_seed(0)
    model = auto_class(is_composite=is_composite).from_config(config)
    randomize(model)
    if is_composite:
        _never_generate_placeholders(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(str(folder))
    write_tokenizer(folder, size=VOCABULARY)
    return type(model).__name__


def _never_generate_placeholders(model: Any) -> None:
    """Give the placeholders of images and sound the logit 0, which is never the largest of many.

    Trained models do not write them, and plain transformers reads generated ones as another token.
    """
    import torch

    fields = model.config.to_dict()
    names = [
        name for name in fields if name.endswith(("_token_id", "_token_index")) and name[:3] not in _SPECIAL_TOKENS
    ]
    ids = [fields[name] for name in names if isinstance(fields[name], int) and 0 <= fields[name] < VOCABULARY]
    head = model.get_output_embeddings()
    if head is not None:
        with torch.no_grad():
            head.weight[ids] = 0


def auto_class(*, is_composite: bool) -> Any:
    """Return the class of transformers that loads a checkpoint with the right head."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if is_composite else AutoModelForCausalLM


def make_config(model_type: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Return the tiny configuration of a model type. `changes` go into it, and mappings among them into its parts."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    special = dict(SPECIAL.get(model_type, {}))
    arguments = _sizes_for(config_class, SIZES)
    for name, default in _parts(config_class).items():
        arguments[name] = _part(name, default) | special.pop(name, {})
    arguments |= special
    for name, value in (changes or {}).items():
        arguments[name] = {**arguments.get(name, {}), **value} if isinstance(value, Mapping) else value
    return config_class(**arguments)


def _part(name: str, default: Any) -> dict[str, Any]:
    """Return the fields of a nested configuration."""
    config_class, special = type(default), SPECIAL.get(default.model_type, {})
    is_tower = any(word in name for word in _TOWERS)
    fields_of_part = _sizes_for(config_class, TOWER_SIZES if is_tower else SIZES)
    for inner, inner_default in _parts(config_class).items():
        fields_of_part[inner] = _part(name if is_tower else inner, inner_default)
    kind = {"model_type": default.model_type} if default.model_type else {}
    return kind | fields_of_part | special


def _sizes_for(config_class: type, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a configuration class has, with their sizes."""
    names = {field.name for field in fields(config_class)} if is_dataclass(config_class) else set()
    chosen = {name: value for name, value in sizes.items() if name in names}
    if "kv_lora_rank" in names and "num_key_value_heads" in chosen:
        chosen["num_key_value_heads"] = HEADS  # latent attention has a key for each query
    marks = [name for name in sorted(names) if name.endswith(("_token_id", "_token_index")) and name not in sizes]
    chosen |= {name: VOCABULARY - 1 - number for number, name in enumerate(marks)}
    return chosen | (_layer_kinds(config_class, chosen) if sizes is SIZES else {})


def _layer_kinds(config_class: type, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the lists of layer kinds, so that a few layers have every kind that the default layers have."""
    count = chosen.get("num_hidden_layers")
    try:
        default = config_class()
    except (TypeError, ValueError):
        return {}
    names = {field.name for field in fields(config_class)} & set(LAYER_KINDS)
    kinds = {name: list(dict.fromkeys(getattr(default, name) or ())) for name in names}
    return {name: list(islice(cycle(several), count)) for name, several in kinds.items() if len(several) > 1 and count}


def _parts(config_class: Any) -> dict[str, Any]:
    """Return the nested configurations that the default configuration has."""
    names = getattr(config_class, "sub_configs", None) or {}
    if not names:
        return {}
    default = config_class()
    return {name: getattr(default, name) for name in names if getattr(default, name, None) is not None}


def randomize(model: Any) -> None:
    """Fill a model with random weights, large enough for answers to depend on every layer and every earlier token.

    With transformers' own initialisation (a standard deviation of 0.02), a model of this width gives almost the same
    logits for every prompt.
    """
    import torch
    from torch import nn

    chance = torch.Generator().manual_seed(7)
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if not parameter.is_floating_point():
                    continue
                noise = torch.randn(parameter.shape, generator=chance)
                if parameter.dim() < 2:
                    parameter += 0.1 * noise
                elif isinstance(module, nn.Embedding):
                    parameter.copy_(0.3 / float(getattr(module, "embed_scale", 1.0)) * noise)
                elif VOCABULARY in parameter.shape:
                    parameter.copy_(0.3 * noise)
                else:
                    inputs = parameter[0].numel() if isinstance(module, convolutions) else parameter.shape[-1]
                    parameter.copy_(1.2 / math.sqrt(inputs) * noise)
