"""The options that make a model fit on a machine where it does not: only those that have a plan."""

from collections.abc import Callable
from dataclasses import replace

from llmctl.model.info import ModelInfo
from llmctl.plan.placement import SMALLER_MODEL
from llmctl.plan.request import Changes, PlanRequest

Fits = Callable[[PlanRequest], bool]
_FEWEST_TOKENS = 256  # an answer in fewer is of little use


def fitting_options(request: PlanRequest, fits: Fits) -> list[str]:
    """Return the command-line options with which the request would fit, the most exact variant first."""
    options = [option for option, changes in smaller_options(request).items() if fits(request.with_changes(changes))]
    if not options:
        tokens = largest(lambda count: fits(replace(request, context=count)), request.context_tokens)
        if tokens is not None and tokens >= _FEWEST_TOKENS:
            options.append(f"at most {tokens} tokens of prompt and answer together (--max-new-tokens)")
    return options


def hint_for(request: PlanRequest, fits: Fits, *, is_in_ram: bool) -> str:
    """Return the hint for a model that does not fit."""
    options = fitting_options(request, fits)
    hint = f"try {' or '.join(options)}" if options else SMALLER_MODEL
    return f"{hint}; --overcommit loads it regardless" if is_in_ram else hint


def quantization_options(info: ModelInfo, bits: int | None) -> list[tuple[str, int]]:
    """Return the options that quantise a model to fewer bits than now; none for one that is quantised already."""
    if info.stored_quantization is not None:
        return []
    return [(f"--quant {fewer}bit", fewer) for fewer in (8, 4) if fewer < (bits or 16)]


def smaller_options(request: PlanRequest) -> dict[str, Changes]:
    """Return options that could make a plan smaller, with the keys that they set."""
    config = request.config
    options: dict[str, Changes] = {}
    if config.load.device_map not in ("auto", "cpu"):
        options["--device-map auto"] = {"load": {"device_map": "auto"}}
    if config.load.dtype == "float32" or (config.load.dtype == "auto" and request.info.stored_dtype == "float32"):
        options["--dtype bf16"] = {"load": {"dtype": "bfloat16"}}
    quantized = quantization_options(request.info, config.quantization.bits)
    options |= {option: {"quantization": {"bits": bits}} for option, bits in quantized}
    if request.machine.gpus and config.load.device_map != "cpu":
        options["--device-map cpu"] = {"load": {"device_map": "cpu"}}
    return options


def largest(fits: Callable[[int], bool], limit: int, *, step: int = 16) -> int | None:
    """Return the largest number up to `limit` that fits, to within `step`; None if not even 1 does."""
    if fits(limit):
        return limit
    if not fits(1):
        return None
    low, high = 1, limit
    while high - low > step:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
