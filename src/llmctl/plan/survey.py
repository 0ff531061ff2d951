"""The variants of a model on a machine, with their memory and speed, and the recommended one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmctl.config import Config
from llmctl.errors import LlmctlError, MachineError
from llmctl.machine.cpu_rates import CpuRates
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision, Plan
from llmctl.plan.dtype import decide_dtype
from llmctl.plan.make import make_plan
from llmctl.plan.memory import unquantised_bytes
from llmctl.plan.placement import candidate_devices
from llmctl.plan.request import PlanRequest
from llmctl.plan.speed import Speed, estimate_speed
from llmctl.quant.registry import preferred

Verdict = Literal["fits", "spills", "too large", "impossible"]
Changes = Mapping[str, Mapping[str, Any]]
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """One dtype and quantisation of a model.

    Attributes:
        name: `float32`, `bfloat16`, `8-bit`, `4-bit nf4`, `4-bit nf4 double`, or the storage of the checkpoint.
        changes: Keys that select the variant in a configuration, by section.
        verdict: `fits`; `spills` (part of it in RAM beside a GPU); `too large`; `impossible` (see `reason`).
        plan: The plan, or None if there is none.
        free_bytes: Free memory of the devices that would be used.
        unquantised_bytes: Bytes of weights that stay in half precision although the rest is quantised.
        spilled_blocks: Number of blocks in RAM because the GPUs are full.
        largest_context: Maximum tokens for which a variant that does not fit would fit; None if it never does.
        speed: Estimated speed, or None for an unknown device.
        reason: Why it is impossible, in one line.
        hint: What to do about it.
    """

    name: str
    changes: Changes
    verdict: Verdict
    plan: Plan | None = None
    free_bytes: int = 0
    unquantised_bytes: int = 0
    spilled_blocks: int = 0
    largest_context: int | None = None
    speed: Speed | None = None
    reason: str = ""
    hint: str | None = None


def survey(request: PlanRequest, *, cpu_rates: CpuRates | None = None) -> tuple[Variant, ...]:
    """Plan every variant of the requested model, the most exact first.

    Args:
        cpu_rates: Measured rates of this computer, for the estimate of speed on its CPU.
    """
    return tuple(_variant(name, changes, request, cpu_rates) for name, changes in _candidates(request))


def recommended(variants: tuple[Variant, ...]) -> Variant | None:
    """Return the most exact variant that fits, or else the one that spills least.

    float32 costs twice the memory of half precision for a difference that answers do not show, so it is only chosen if
    nothing else fits.
    """
    fitting = [variant for variant in variants if variant.verdict == "fits"]
    preferred = [variant for variant in fitting if variant.name != "float32"] or fitting
    if preferred:
        return preferred[0]
    spilling = [variant for variant in variants if variant.verdict == "spills"]
    return min(spilling, key=lambda variant: variant.spilled_blocks, default=None)


def _candidates(request: PlanRequest) -> list[tuple[str, Changes]]:
    """Return the name of each variant with the keys that select it."""
    if request.info.stored_quantization is not None:
        return [(f"as stored ({request.info.stored_quantization.name})", {})]
    half = {"dtype": str(_half_dtype(request).value)}
    try:
        devices = candidate_devices(request.config, request.machine)
    except LlmctlError:
        devices = ()  # every variant is impossible, and its reason explains it
    backend = preferred(request.config, request.machine, devices=devices)
    return [
        ("float32", {"load": {"dtype": "float32"}, "quantization": {"bits": None}}),
        (half["dtype"], {"load": half, "quantization": {"bits": None}}),
        *((variant.name, {"load": half, "quantization": variant.section}) for variant in backend.variants()),
    ]


def _half_dtype(request: PlanRequest) -> Decision:
    """Return the half-precision dtype for this machine, with the reason."""
    dtype = request.config.load.dtype if request.config.load.dtype in _HALF else "auto"
    config = _changed(request.config, {"load": {"dtype": dtype}, "quantization": {"bits": 4}})
    try:
        devices = candidate_devices(config, request.machine)
        return decide_dtype(config, request.machine, request.info, devices=devices)
    except LlmctlError:
        return Decision("dtype", "bfloat16", "the usual half precision")


def _changed(config: Config, changes: Changes) -> Config:
    values = config.model_dump(exclude_unset=True)
    for section, part in changes.items():
        values[section] = {**values.get(section, {}), **part}
    return Config.model_validate(values)


def _variant(name: str, changes: Changes, request: PlanRequest, cpu_rates: CpuRates | None) -> Variant:
    machine, info = request.machine, request.info
    changed = replace(request, config=_changed(request.config, changes))
    try:
        plan = make_plan(changed)
    except MachineError as error:
        if "weights_bytes" not in error.details:
            return Variant(name, changes, "impossible", reason=error.message, hint=error.hint)
        largest_context = _largest_context(changed)
        return Variant(name, changes, "too large", largest_context=largest_context, reason=error.message)
    except LlmctlError as error:
        return Variant(name, changes, "impossible", reason=error.message, hint=error.hint)
    if plan.model_kwargs["dtype"] in _HALF and request.config.load.dtype == "auto":
        plan = plan.with_decision(_half_dtype(request))  # the variant set the dtype; this is the reason for it
    in_ram = [module for module, device in plan.model_kwargs["device_map"].items() if device == "cpu"]
    spills = bool(in_ram) and bool(machine.gpus) and changed.config.load.device_map != "cpu"
    return Variant(
        name,
        changes,
        "spills" if spills else "fits",
        plan=plan,
        free_bytes=_free_bytes(plan, machine),
        unquantised_bytes=unquantised_bytes(info, plan.quantization),
        spilled_blocks=_count_blocks(in_ram, info) if spills else 0,
        largest_context=_largest_context(changed, on_gpu=True) if spills else None,
        speed=estimate_speed(plan, machine, info, cpu_rates=cpu_rates),
    )


def _count_blocks(modules: list[str], info: ModelInfo) -> int:
    """Count the decoder blocks among the modules; the module "" contains all of them."""
    return info.layer_count if "" in modules else sum(module[-1].isdigit() for module in modules)


def _free_bytes(plan: Plan, machine: Machine) -> int:
    gpus = {gpu.device: gpu.free_bytes for gpu in machine.gpus}
    return sum(gpus.get(device, machine.ram_available_bytes) for device in plan.devices)


def _largest_context(request: PlanRequest, *, on_gpu: bool = False) -> int | None:
    """Return the maximum tokens below the requested context that have a plan (with `on_gpu`, one that uses no RAM)."""

    def fits(context: int) -> bool:
        try:
            plan = make_plan(replace(request, context=context))
        except LlmctlError:
            return False
        return not on_gpu or "cpu" not in plan.devices

    if not fits(1):
        return None
    low, high = 1, request.context_tokens
    while high - low > 16:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
