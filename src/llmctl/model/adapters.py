"""The files of an adapter, adapter_config.json and adapter_model.safetensors, read without executing their content.

The changed modules and their ranks come from the weights. The patterns in adapter_config.json are regular expressions
from a repository. A malicious one could take years to match, so none of them is ever evaluated.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.errors import ModelError, UserError
from llmctl.model.checkpoint import PICKLE_SUFFIXES, Tensor, lies_inside, read_json, read_tensors
from llmctl.model.info import ModelInfo

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"^(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight|\.bias)?$")
_PLAIN = re.compile(r"^[\w.]+$")
# Keys that decide the result, passed on to peft.
_USED_KEYS = (
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "alpha_pattern",
)
# Keys about training and initialisation, and keys that repeat information in the weights.
_IGNORED_KEYS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_type",
        "peft_version", "qalora_group_size", "rank_pattern", "revision", "runtime_config", "target_modules",
        "task_type", "eva_config", "corda_config", "loftq_config", "lora_ga_config",
    }
)  # fmt: skip
# Initialisation methods that also change the model's own weights: on the original weights the adapter is wrong.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_RANK_LIMIT = 16_384


@dataclass(frozen=True)
class AdapterInfo:
    """A LoRA adapter, as its files describe it.

    Attributes:
        source: Hub id, or path of the folder.
        folder: Folder of the files.
        commit: Commit on the Hub, or None for a plain folder.
        base_model: Model that it was made for, as its files state; None if they do not.
        settings: Keys of adapter_config.json that decide the result.
        tensors: Tensors of the weights file.
        ranks: Rank of each module that it changes.
        scale: Factor of its effect.
    """

    source: str
    folder: Path
    commit: str | None
    base_model: str | None
    settings: Mapping[str, Any]
    tensors: tuple[Tensor, ...] = field(repr=False)
    ranks: Mapping[str, int] = field(repr=False)
    scale: float = 1.0

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes in memory: peft computes adapters in float32."""
        return 4 * self.parameters


def read_adapter(folder: Path, *, source: str, commit: str | None = None, scale: float = 1.0) -> AdapterInfo:
    """Read an adapter from a folder on this machine.

    Raises:
        ModelError: the folder holds no adapter, its files are unsafe or absurd, or llmctl does not load its type.
    """
    if not (folder / CONFIG_FILE).is_file():
        is_model = (folder / "config.json").is_file()
        raise ModelError(
            f"{source} is a whole model, not an adapter" if is_model else f"{source} has no {CONFIG_FILE}",
            hint="pass it with --model" if is_model else "pass a folder that peft saved an adapter to",
        )
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG_FILE} is not a mapping")
    _check_type(config, source)
    _check_values(config, source)
    tensors = read_tensors((_weights_file(folder, source),))
    base = config.get("base_model_name_or_path")
    return AdapterInfo(
        source=source,
        folder=folder,
        commit=commit,
        base_model=base if isinstance(base, str) and base else None,
        settings={name: config[name] for name in _USED_KEYS if config.get(name)},
        tensors=tensors,
        ranks=_ranks(tensors, source),
        scale=scale,
    )


def _weights_file(folder: Path, source: str) -> Path:
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise ModelError(
                f"{source} has its weights only as a pickle ({pickles[0]}), which can run code when read",
                hint="look for a safetensors revision, or convert it with peft on a machine without valuable data",
                details={"pickles": pickles},
            )
        raise ModelError(f"{source} has no {WEIGHTS_FILE}", hint="download it again, or save it again with peft")
    if not lies_inside(folder, file):
        raise ModelError(f"{file} is a link that leads outside its folder", hint="nothing was read from it")
    return file


def _check_type(config: Mapping[str, Any], source: str) -> None:
    """Refuse everything but the forms of LoRA that can be put on an unchanged model."""
    peft_type = str(config.get("peft_type")).upper()
    if peft_type != "LORA":
        raise ModelError(
            f"{source} is an adapter of the type {peft_type}; llmctl loads LoRA", hint="choose a LoRA of the model"
        )
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        raise ModelError(
            f"{source} was initialised by {init}, which also changes the model's own weights",
            hint="save it again with peft's path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )
    unsupported = [name for name, value in config.items() if name not in (*_USED_KEYS, *_IGNORED_KEYS) and value]
    if config.get("bias") not in (None, "none"):
        unsupported.append("bias")
    for name in unsupported:
        raise ModelError(
            f"{source} uses {name}, which llmctl does not load", hint="it loads plain LoRA, rsLoRA and DoRA"
        )


def _check_values(config: Mapping[str, Any], source: str) -> None:
    """Refuse absurd numbers, and names of modules that are patterns."""
    patterns = config.get("alpha_pattern") or {}
    numbers = [config.get("lora_alpha", 8), *(patterns.values() if isinstance(patterns, dict) else [None])]
    names = [*(patterns if isinstance(patterns, dict) else []), *(config.get("modules_to_save") or [])]
    if not all(isinstance(n, int | float) and math.isfinite(n) and abs(n) <= 1e6 for n in numbers):
        raise ModelError(f"{source}: lora_alpha is not a finite number of at most 1e6", hint="save it again with peft")
    if not all(isinstance(name, str) and _PLAIN.match(name) for name in names):
        raise ModelError(
            f"{source} names modules by a pattern in alpha_pattern or modules_to_save, and llmctl evaluates no pattern",
            hint="list the names of the modules there",
        )


def _ranks(tensors: tuple[Tensor, ...], source: str) -> dict[str, int]:
    ranks: dict[str, int] = {}
    for tensor in tensors:
        match = _PART.match(tensor.name.removeprefix(_PREFIX))
        if match and match[2] in ("lora_A", "lora_embedding_A"):
            if len(tensor.shape) != 2 or not 1 <= tensor.shape[0] <= _RANK_LIMIT:
                raise ModelError(f"{source}: {tensor.name} with the shape {tensor.shape} is not a LoRA matrix")
            ranks[match[1]] = tensor.shape[0]
    if not ranks:
        raise ModelError(f"{source} has no LoRA weights in {WEIGHTS_FILE}", hint="was it saved by peft?")
    return ranks


def check_fit(adapter: AdapterInfo, info: ModelInfo) -> None:
    """Refuse an adapter whose names and shapes do not fit the model.

    Raises:
        UserError: the model lacks a module that the adapter changes, or has it in another shape.
    """
    if info.stored_quantization is not None:
        return  # packed weights have other shapes; peft checks the layers themselves
    base_shapes = {tensor.name.removesuffix(".weight"): tensor.shape for tensor in info.tensors}
    base_shapes |= {name.partition(".")[2]: shape for name, shape in base_shapes.items() if "." in name}
    missing = [module for module in adapter.ranks if _shape_of(base_shapes, module) is None and "lm_head" not in module]
    if missing:
        raise _misfit(adapter, info, f"the model has no {missing[0]}")
    lora_shapes = {tensor.name.removeprefix(_PREFIX): tensor.shape for tensor in adapter.tensors}
    for module in adapter.ranks:
        shape = _shape_of(base_shapes, module)
        lora_a, lora_b = lora_shapes.get(f"{module}.lora_A.weight"), lora_shapes.get(f"{module}.lora_B.weight")
        if shape is None or lora_a is None or lora_b is None:
            continue
        expected = (lora_b[0], lora_a[1])
        if expected not in (shape, shape[::-1] if info.model_type == "gpt2" else shape):
            raise _misfit(
                adapter, info, f"it expects {module} of the shape {list(expected)}, the model has {list(shape)}"
            )


def _shape_of(base_shapes: Mapping[str, tuple[int, ...]], module: str) -> tuple[int, ...] | None:
    return base_shapes.get(module) or base_shapes.get(module.partition(".")[2])


def _misfit(adapter: AdapterInfo, info: ModelInfo, why: str) -> UserError:
    made_for = f" was made for {adapter.base_model} and" if adapter.base_model else ""
    return UserError(
        f"the adapter {adapter.source}{made_for} does not fit {info.source}: {why}",
        hint=f"--model {adapter.base_model}" if adapter.base_model else "load the model that it was made for",
        details={"base_model": adapter.base_model},
    )
