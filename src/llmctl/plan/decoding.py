"""Options that make decoding faster or its cache smaller: prompt lookup, kinds of KV cache, compiling."""

from collections.abc import Sequence
from typing import Any

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision
from llmctl.plan.gpus import is_card
from llmctl.quant.backend import Quantization
from llmctl.transformers_compat import FP8_CACHE_SINCE

# Packages of the backends that quantise a cache; fp8 needs none.
_BACKENDS = {"quanto": "optimum-quanto", "hqq": "hqq"}
# On a GPU transformers compiles the forward pass for these caches without being asked, with the mode "reduce-overhead".
_STATIC = ("static", "offloaded_static")
# With CUDA graphs (transformers' default, "reduce-overhead") the graphs belong to the thread that recorded them, and
# every answer is generated in a thread of its own.
COMPILE_MODE = "default"

Decided = tuple[dict[str, Any], tuple[Decision, ...]]


def decide_decoding(
    config: Config, machine: Machine, info: ModelInfo, *, devices: Sequence[str], quantization: Quantization | None
) -> Decided:
    """Return arguments of GenerationConfig that make decoding faster or its cache smaller, and the decisions.

    `compile_config` holds the arguments of CompileConfig. Both results are empty if no option is set.

    Raises:
        UserError: the options exclude each other, or the model does not support one.
        MachineError: this machine lacks a package, a GPU or a compiler.
    """
    _check_combinations(config)
    arguments: dict[str, Any] = {}
    decisions: list[Decision] = []
    lookup = config.generation.prompt_lookup_num_tokens
    if lookup is not None:
        arguments["prompt_lookup_num_tokens"] = lookup
        reason = "asked for: tokens are proposed from the text so far"
        decisions.append(Decision("prompt_lookup_num_tokens", lookup, reason))
    for more_arguments, more_decisions in (
        _decide_cache(config, machine, info, devices=devices),
        _decide_compiling(config, machine, devices=devices, quantization=quantization),
    ):
        arguments |= more_arguments
        decisions += more_decisions
    return arguments, tuple(decisions)


def _check_combinations(config: Config) -> None:
    """Refuse options that transformers does not combine."""
    section = config.generation
    proposing = _proposing_keys(config)
    if len(proposing) > 1:
        raise UserError("draft.id and generation.prompt_lookup_num_tokens both propose tokens", hint="omit one of them")
    exclusive = [*proposing, *(["generation.compile"] if section.compile else [])]
    if exclusive and section.num_beams > 1:
        raise UserError(
            f"{exclusive[0]} cannot be combined with beam search (generation.num_beams is {section.num_beams})",
            hint="omit one of them",
        )
    if proposing and section.compile:
        raise UserError(
            f"{proposing[0]} cannot be combined with generation.compile: it would compile for each number of proposals",
            hint="omit one of them",
        )
    cache = section.cache_implementation or "dynamic"
    if proposing and cache != "dynamic":
        raise UserError(
            f"{proposing[0]} needs a dynamic cache, from which rejected tokens can be removed; "
            f"generation.cache_implementation is {cache}",
            hint="omit one of them",
        )
    if section.compile and section.cache_implementation not in (None, "static"):
        raise UserError(
            f"generation.compile needs a static cache; generation.cache_implementation is {cache}",
            hint="omit --cache",
        )
    if section.cache_config and cache != "quantized":
        raise UserError("generation.cache_config is for a quantized cache", hint="add --cache quantized, or omit it")


def _proposing_keys(config: Config) -> list[str]:
    values = {
        "draft.id": config.draft.id,
        "generation.prompt_lookup_num_tokens": config.generation.prompt_lookup_num_tokens,
    }
    return [key for key, value in values.items() if value is not None]


def _decide_cache(config: Config, machine: Machine, info: ModelInfo, *, devices: Sequence[str]) -> Decided:
    name = config.generation.cache_implementation
    if name is None:
        return {}, ()
    if name.startswith("offloaded") and not any(map(is_card, devices)):
        raise MachineError(
            f"the {name} cache moves keys and values from a GPU to RAM; this model runs on {', '.join(devices)}",
            hint="omit --cache: keys and values are in RAM already",
        )
    if name in _STATIC and not config.generation.compile:
        return (
            {"cache_implementation": name, "disable_compile": True},
            (Decision("cache_implementation", name, "asked for; not compiled (--compile)"),),
        )
    if name != "quantized":
        return {"cache_implementation": name}, (Decision("cache_implementation", name, "asked for"),)
    if _has_partial_attention(info):
        raise UserError(
            f"{info.source} has layers without full attention; transformers quantises the cache of full attention only",
            hint="omit --cache quantized: a sliding window keeps the cache small already",
        )
    backend, reason = _choose_backend(config, machine)
    arguments = {"cache_implementation": name, "cache_config": {**config.generation.cache_config, "backend": backend}}
    return arguments, (Decision("cache_implementation", f"quantized ({backend})", reason),)


def _has_partial_attention(info: ModelInfo) -> bool:
    """Return True if some layers keep a window or a state instead of all keys and values."""
    text = info.text_config
    layer_types = text.get("layer_types")
    if isinstance(layer_types, list):
        return any(layer_type != "full_attention" for layer_type in layer_types)
    windowed = text.get("sliding_window") is not None and text.get("use_sliding_window", True)
    return bool(windowed or text.get("attention_chunk_size"))


def _choose_backend(config: Config, machine: Machine) -> tuple[str, str]:
    """Return the library that quantises the cache, and the reason."""
    requested = config.generation.cache_config.get("backend")
    installed = [name for name, package in _BACKENDS.items() if package in machine.packages]
    settings = [key for key in config.generation.cache_config if key != "backend"]
    if requested is None:
        backend = installed[0] if installed else "fp8"
        reason = f"asked for; {backend} is installed" if installed else "asked for; fp8, 8 bits, needs no package"
    else:
        backend, reason = str(requested), "asked for"
    if backend != "fp8" and backend not in installed:
        package = _BACKENDS[backend]
        raise MachineError(
            f"a cache quantised by {backend} needs the package {package}, which is not installed",
            hint=f"pip install {package}, or choose fp8, which needs none",
        )
    transformers = machine.packages.get("transformers")
    if backend == "fp8" and transformers and _version(transformers) < FP8_CACHE_SINCE:
        since = ".".join(map(str, FP8_CACHE_SINCE))
        raise MachineError(
            f"a cache quantised in fp8 needs transformers {since}, {transformers} is installed",
            hint=f"pip install --upgrade transformers, or: pip install {_BACKENDS['quanto']}",
        )
    if backend == "fp8" and settings:
        raise UserError(
            f"generation.cache_config: fp8 has no {settings[0]}; only quanto and hqq have it",
            hint=f"omit it, or: pip install {_BACKENDS['quanto']}",
        )
    return backend, f"{reason}; lossy: the text can differ"


def _version(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _decide_compiling(
    config: Config, machine: Machine, *, devices: Sequence[str], quantization: Quantization | None
) -> Decided:
    if not config.generation.compile:
        return {}, ()
    if quantization is not None and not quantization.backend.can_compile:
        raise UserError(
            f"generation.compile: transformers does not compile {quantization.name} models",
            hint="omit --compile or --quant",
        )
    if len(devices) > 1 and "cpu" in devices:
        raise UserError(
            "generation.compile: a model that is partly in RAM cannot be compiled",
            hint="omit --compile, or choose a model or a dtype that fits on the GPU",
        )
    on_gpu = is_card(devices[0])
    if on_gpu and "triton" not in machine.packages:
        raise MachineError(
            "compiling for a GPU needs the package triton, which is not installed", hint="pip install triton"
        )
    if not machine.compiler:
        raise MachineError(
            "compiling needs a C++ compiler, and none was found",
            hint="sudo apt install g++   (or set CXX to an installed one)",
        )
    reason = f"asked for: with {machine.compiler}, at the second token; it can take a minute"
    return (
        {"cache_implementation": "static", "compile_config": {"mode": COMPILE_MODE}},
        (Decision("compile", True, reason),),
    )
