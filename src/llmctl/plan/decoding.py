"""Faster decoding on request: proposing tokens, how keys and values are kept, compiling; and what excludes what."""

from collections.abc import Sequence
from typing import Any

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision
from llmctl.quant.backend import Quantization
from llmctl.transformers_compat import FP8_CACHE_SINCE

# The packages of the backends of a quantised cache; fp8 needs none.
_BACKENDS = {"quanto": "optimum-quanto", "hqq": "hqq"}
# Compiling with CUDA graphs (transformers' own "reduce-overhead") ties the graphs to the thread that recorded them,
# and every answer is generated in a thread of its own.
COMPILE_MODE = "default"

Decided = tuple[dict[str, Any], tuple[Decision, ...]]


def decide_decoding(
    config: Config, machine: Machine, info: ModelInfo, *, devices: Sequence[str], quantization: Quantization | None
) -> Decided:
    """The arguments of GenerationConfig that make decoding faster or its cache smaller, and why.

    Args:
        config: What was asked.
        machine: What is here.
        info: The model.
        devices: The devices in use.
        quantization: How the weights are quantised.

    Returns:
        The arguments, `compile_config` as those of CompileConfig; and the decisions. Empty where nothing was asked.

    Raises:
        UserError: what was asked excludes each other, or the model cannot do it.
        MachineError: this machine lacks what it needs.
    """
    _check_combinations(config)
    arguments: dict[str, Any] = {}
    decisions: list[Decision] = []
    lookup = config.generation.prompt_lookup_num_tokens
    if lookup is not None:
        arguments["prompt_lookup_num_tokens"] = lookup
        reason = "asked for: tokens are proposed from the text so far"
        decisions.append(Decision("prompt_lookup_num_tokens", lookup, reason))
    for more, decision in (
        _cache(config, machine, info, devices=devices),
        _compiled(config, machine, devices=devices, quantization=quantization),
    ):
        arguments |= more
        decisions += decision
    return arguments, tuple(decisions)


def _check_combinations(config: Config) -> None:
    """Refuse what transformers does not do together."""
    asked = config.generation
    proposing = _proposing(config)
    if len(proposing) > 1:
        raise UserError(
            "draft.id and generation.prompt_lookup_num_tokens both propose tokens", hint="leave one of them away"
        )
    rivals = [*proposing, *(["generation.compile"] if asked.compile else [])]
    if rivals and asked.num_beams > 1:
        raise UserError(
            f"{rivals[0]} does not go with beam search (generation.num_beams is {asked.num_beams})",
            hint="leave one of them away",
        )
    if proposing and asked.compile:
        raise UserError(
            f"{proposing[0]} does not go with generation.compile: each number of proposals would be compiled anew",
            hint="leave one of them away",
        )
    kept = asked.cache_implementation or "dynamic"
    if proposing and kept != "dynamic":
        raise UserError(
            f"{proposing[0]} needs a dynamic cache, from which refused tokens can be taken back; "
            f"generation.cache_implementation is {kept}",
            hint="leave one of them away",
        )
    if asked.compile and asked.cache_implementation not in (None, "static"):
        raise UserError(
            f"generation.compile needs a static cache; generation.cache_implementation is {kept}",
            hint="leave --cache away",
        )
    if asked.cache_config and kept != "quantized":
        raise UserError(
            "generation.cache_config is about a quantized cache", hint="add --cache quantized, or leave it away"
        )


def _proposing(config: Config) -> list[str]:
    given = {
        "draft.id": config.draft.id,
        "generation.prompt_lookup_num_tokens": config.generation.prompt_lookup_num_tokens,
    }
    return [key for key, value in given.items() if value is not None]


def _cache(config: Config, machine: Machine, info: ModelInfo, *, devices: Sequence[str]) -> Decided:
    wanted = config.generation.cache_implementation
    if wanted is None:
        return {}, ()
    if wanted.startswith("offloaded") and not any(device.startswith("cuda") for device in devices):
        raise MachineError(
            f"the {wanted} cache keeps in RAM what a GPU has computed; this model runs on {', '.join(devices)}",
            hint="leave --cache away: keys and values lie in RAM already",
        )
    if wanted != "quantized":
        return {"cache_implementation": wanted}, (Decision("cache_implementation", wanted, "asked for"),)
    if _has_other_layers(info):
        raise UserError(
            f"{info.source} has layers without full attention; transformers quantises the cache of full attention only",
            hint="leave --cache quantized away: a sliding window keeps the cache small already",
        )
    backend, reason = _backend(config, machine)
    arguments = {"cache_implementation": wanted, "cache_config": {**config.generation.cache_config, "backend": backend}}
    return arguments, (Decision("cache_implementation", f"quantized ({backend})", reason),)


def _has_other_layers(info: ModelInfo) -> bool:
    """Whether some layers keep something else than every key and value: a window, a state."""
    text = info.text_config
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        return any(kind != "full_attention" for kind in kinds)
    windowed = text.get("sliding_window") is not None and text.get("use_sliding_window", True)
    return bool(windowed or text.get("attention_chunk_size"))


def _backend(config: Config, machine: Machine) -> tuple[str, str]:
    """Which library quantises the cache, and why."""
    asked = config.generation.cache_config.get("backend")
    here = [name for name, package in _BACKENDS.items() if package in machine.packages]
    details = [key for key in config.generation.cache_config if key != "backend"]
    if asked is None:
        backend = here[0] if here else "fp8"
        reason = f"asked for; {backend} is installed" if here else "asked for; fp8, 8 bits, needs no package"
    else:
        backend, reason = str(asked), "asked for"
    if backend != "fp8" and backend not in here:
        package = _BACKENDS[backend]
        raise MachineError(
            f"a cache quantised by {backend} needs the package {package}, which is not installed",
            hint=f"pip install {package}, or take fp8, which needs none",
        )
    transformers = machine.packages.get("transformers")
    if backend == "fp8" and transformers and _version(transformers) < FP8_CACHE_SINCE:
        since = ".".join(map(str, FP8_CACHE_SINCE))
        raise MachineError(
            f"a cache quantised in fp8 needs transformers {since}, {transformers} is installed",
            hint=f"pip install --upgrade transformers, or: pip install {_BACKENDS['quanto']}",
        )
    if backend == "fp8" and details:
        raise UserError(
            f"generation.cache_config: fp8 does not know {details[0]}; only quanto and hqq do",
            hint=f"leave it away, or: pip install {_BACKENDS['quanto']}",
        )
    return backend, f"{reason}; lossy: the text can differ"


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _compiled(
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
            "generation.compile: a model that lies partly in RAM cannot be compiled",
            hint="leave --compile away, or take a model or a dtype that fits on the GPU",
        )
    on_gpu = devices[0].startswith("cuda")
    if on_gpu and "triton" not in machine.packages:
        raise MachineError(
            "compiling for a GPU needs the package triton, which is not installed", hint="pip install triton"
        )
    if not machine.compiler:
        raise MachineError(
            "compiling needs a C++ compiler, and none was found",
            hint="sudo apt install g++   (or set CXX to the one you have)",
        )
    reason = f"asked for: with {machine.compiler}, when the second token is computed; it can take a minute"
    return (
        {"cache_implementation": "static", "compile_config": {"mode": COMPILE_MODE}},
        (Decision("compile", True, reason),),
    )
