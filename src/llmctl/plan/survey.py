"""The variants of a model on a machine, with their memory and speed, and the recommended one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from llmctl.config import Config
from llmctl.errors import LlmctlError, MachineError
from llmctl.machine.cpu_rates import CpuRates
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.arrangement import arrange, required_memory
from llmctl.plan.decision import Decision, Plan
from llmctl.plan.devices import device_choices
from llmctl.plan.dtype import decide_dtype
from llmctl.plan.gpus import is_card
from llmctl.plan.make import plan_without_advice
from llmctl.plan.memory import Memory, unquantised_bytes
from llmctl.plan.options import largest
from llmctl.plan.request import Changes, PlanRequest
from llmctl.plan.speed import Speed, estimate_speed
from llmctl.quant.registry import preferred

Verdict = Literal["fits", "spills", "too large", "impossible"]
_HALF = ("bfloat16", "float16")
_ON_CPU = Decision("device_map", "cpu", "the GPUs have no room, and the CPU's kernels compute with all of it quantised")


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
        needed: Memory that it needs, whether it fits or not; None if it is impossible.
        missing_bytes: Bytes of RAM or GPU memory that are missing if it is too large.
        spilled_modules: Names of the modules in RAM that are not blocks.
        is_on_cpu: True if it uses none of the GPUs.
        largest_batch: Maximum sequences for which a variant that does not fit would fit; None if it never does.
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
    needed: Memory | None = None
    missing_bytes: int = 0
    spilled_modules: tuple[str, ...] = ()
    is_on_cpu: bool = False
    largest_batch: int | None = None
    reason: str = ""
    hint: str | None = None


def survey(request: PlanRequest, *, cpu_rates: CpuRates | None = None) -> tuple[Variant, ...]:
    """Plan every variant of the requested model, the most exact first.

    If none fits on the GPUs, those follow that fit quantised on the CPU, where experts are quantised, too.

    Args:
        cpu_rates: Measured rates of this computer, for the estimate of speed on its CPU.
    """
    variants = tuple(_variant(name, changes, request, cpu_rates) for name, changes in _candidates(request))
    if any(variant.verdict == "fits" or variant.largest_batch is not None for variant in variants):
        return variants
    on_cpu = (_variant(name, changes, request, cpu_rates) for name, changes in _candidates_on_cpu(request))
    fitting = (one for one in on_cpu if one.plan is not None and one.verdict == "fits")
    return (*variants, *(replace(one, plan=one.plan and one.plan.with_decision(_ON_CPU)) for one in fitting))


def recommended(variants: tuple[Variant, ...]) -> Variant | None:
    """Return the most exact variant that fits; else the most exact one that fits with fewer sequences at a time.

    The last resort is the variant that spills least. float32 costs twice the memory of half precision for a difference
    that answers do not show, so it is only chosen if nothing else fits.
    """
    for candidates in (
        [variant for variant in variants if variant.verdict == "fits"],
        [variant for variant in variants if variant.largest_batch is not None],
    ):
        if preferred := [variant for variant in candidates if variant.name != "float32"] or candidates:
            return preferred[0]
    spilling = [variant for variant in variants if variant.verdict == "spills"]
    return min(spilling, key=lambda variant: variant.spilled_blocks, default=None)


def with_fewer_sequences(variant: Variant, request: PlanRequest, *, cpu_rates: CpuRates | None = None) -> Variant:
    """Return a variant planned for its `largest_batch`."""
    smaller = replace(request, batch=variant.largest_batch or request.batch)
    return _variant(variant.name, variant.changes, smaller, cpu_rates)


def _candidates(request: PlanRequest) -> list[tuple[str, Changes]]:
    """Return the name of each variant with the keys that select it, without those that the user has excluded."""
    if request.info.stored_quantization is not None:
        return [(f"as stored ({request.info.stored_quantization.name})", {})]
    half = _half_precision(request)
    backend = preferred(request.config, request.machine, devices=half.devices)
    candidates: list[tuple[str, Changes]] = [
        ("float32", {"load": {"dtype": "float32"}, "quantization": {"bits": None}}),
        (half.dtype, {"load": {"dtype": half.asked}, "quantization": {"bits": None}}),
        *(
            (variant.name, {"load": {"dtype": half.asked_quantised}, "quantization": variant.section})
            for variant in backend.variants()
        ),
    ]
    config = request.config
    agreeing = [(name, changes) for name, changes in candidates if _agrees(config, changes)]
    bits = f"{config.quantization.bits}-bit, " if config.quantization.bits else ""
    return agreeing or [(f"{bits}{config.load.dtype}", {})]


def _candidates_on_cpu(request: PlanRequest) -> list[tuple[str, Changes]]:
    """Return the quantised variants on the CPU beside GPUs; none if the user has excluded them."""
    if not request.machine.gpus or request.info.stored_quantization is not None:
        return []
    variants = preferred(request.config, request.machine, devices=("cpu",)).variants()
    load = {"device_map": "cpu"}
    candidates = [(f"{one.name}, CPU", {"load": load, "quantization": one.section}) for one in variants]
    return [(name, changes) for name, changes in candidates if _agrees(request.config, changes)]


def _agrees(config: Config, changes: Changes) -> bool:
    """Return True if the changes contradict nothing that the user has set."""
    for section, part in changes.items():
        chosen = getattr(config, section)
        for key, value in part.items():
            if key in chosen.model_fields_set and getattr(chosen, key) not in (value, "auto"):
                return False
    return True


class _Half(NamedTuple):
    """Half precision on a machine.

    Attributes:
        dtype: The dtype.
        asked: The value of `load.dtype` with which unquantised weights get it.
        asked_quantised: The same for quantised weights.
        devices: The devices that would hold quantised weights.
        reason: The reason for the dtype.
    """

    dtype: str
    asked: str
    asked_quantised: str
    devices: tuple[str, ...]
    reason: str


def _half_precision(request: PlanRequest) -> _Half:
    """Return the half precision for this machine. A dtype is named only where `auto` would not choose it."""
    requested, stored = request.config.load.dtype, request.info.stored_dtype
    asked = requested if requested in _HALF else "auto"
    changed = request.with_changes({"load": {"dtype": asked}, "quantization": {"bits": 4}})
    devices, decision = _devices_and_dtype(changed)
    if decision.value in _HALF:
        is_default = asked != "auto" or stored in _HALF
        return _Half(decision.value, asked if is_default else decision.value, asked, devices, decision.reason)
    return _Half("bfloat16", "bfloat16", asked, devices, "half the memory of float32; emulated here, and slow")


def _devices_and_dtype(request: PlanRequest) -> tuple[tuple[str, ...], Decision]:
    try:
        arrangement = arrange(request)
        return arrangement.devices, arrangement.dtype
    except LlmctlError:
        return _devices_and_dtype_of_any_size(request)


def _devices_and_dtype_of_any_size(request: PlanRequest) -> tuple[tuple[str, ...], Decision]:
    """Return the devices and the dtype for a model that does not fit; every variant says why it does not."""
    config, machine, info = request.config, request.machine, request.info
    try:
        first, *_ = device_choices(config, machine, quantizes=True)
        return first.devices, decide_dtype(config, machine, info, devices=first.devices)
    except LlmctlError:
        return (), Decision("dtype", "bfloat16", "the usual half precision")


def _variant(name: str, changes: Changes, request: PlanRequest, cpu_rates: CpuRates | None) -> Variant:
    machine, info = request.machine, request.info
    is_asked = request.config.quantization.bits is not None
    changed = replace(request.with_changes(changes), proposes_quantization=not is_asked)
    try:
        plan = plan_without_advice(changed)
    except MachineError as error:
        if "missing_bytes" not in error.details:
            return Variant(name, changes, "impossible", reason=error.message, hint=error.hint)
        return _too_large(name, changes, changed, error)
    except LlmctlError as error:
        return Variant(name, changes, "impossible", reason=error.message, hint=error.hint)
    plan = _with_reason_for_dtype(plan, changes, request)
    name = plan.model_kwargs["dtype"] if name in _HALF else name
    in_ram = [module for module, device in plan.module_devices.items() if device == "cpu"]
    spills = plan.is_split
    fits_on_gpu = partial(_fits, on_gpu=True)
    return Variant(
        name,
        changes,
        "spills" if spills else "fits",
        plan=plan,
        needed=plan.memory,
        free_bytes=_free_bytes(plan.devices, machine),
        unquantised_bytes=unquantised_bytes(info, plan.quantization),
        spilled_blocks=_count_blocks(in_ram, info) if spills else 0,
        is_on_cpu=bool(machine.gpus) and plan.devices == ("cpu",),
        spilled_modules=tuple(module for module in in_ram if module and not module[-1].isdigit()) if spills else (),
        largest_context=_largest_context(changed, fits_on_gpu) if spills else None,
        largest_batch=_largest_batch(changed, fits_on_gpu) if spills else None,
        speed=estimate_speed(plan, machine, info, cpu_rates=cpu_rates),
    )


def _too_large(name: str, changes: Changes, changed: PlanRequest, error: MachineError) -> Variant:
    """Return a variant that does not fit, with what it would need."""
    needed = required_memory(changed)
    devices = tuple(needed.weights)
    on_gpus = is_card(devices[0])
    spills = on_gpus and changed.config.load.device_map == "auto"
    return Variant(
        name,
        changes,
        "too large",
        needed=needed,
        missing_bytes=error.details["missing_bytes"],
        free_bytes=_free_bytes((*devices, "cpu") if spills else devices, changed.machine),
        largest_context=_largest_context(changed, _fits),
        largest_batch=_largest_batch(changed, partial(_fits, on_gpu=on_gpus)),
        reason=error.message,
    )


def _with_reason_for_dtype(plan: Plan, changes: Changes, request: PlanRequest) -> Plan:
    """Return the plan with the reason for a dtype that the variant named and not the user."""
    named = changes.get("load", {}).get("dtype", "auto")
    if named == "auto" or request.config.load.dtype != "auto":
        return plan
    if named == "float32":
        return plan.with_decision(Decision("dtype", named, "the most exact; half precision takes half the memory"))
    return plan.with_decision(Decision("dtype", named, _half_precision(request).reason))


def _count_blocks(modules: list[str], info: ModelInfo) -> int:
    """Count the decoder blocks among the modules; the module "" contains all of them."""
    return info.layer_count if "" in modules else sum(module[-1].isdigit() for module in modules)


def _free_bytes(devices: tuple[str, ...], machine: Machine) -> int:
    gpus = {gpu.device: gpu.free_bytes for gpu in machine.gpus}
    return sum(gpus.get(device, machine.ram_available_bytes) for device in devices)


def _fits(request: PlanRequest, *, on_gpu: bool = False) -> bool:
    """Return True if there is a plan; with `on_gpu`, one that uses no RAM."""
    try:
        plan = plan_without_advice(request)
    except LlmctlError:
        return False
    return not on_gpu or "cpu" not in plan.devices


def _largest_context(request: PlanRequest, fits: Callable[[PlanRequest], bool]) -> int | None:
    """Return the maximum tokens below the requested context that fit."""
    return largest(lambda context: fits(replace(request, context=context)), request.context_tokens)


def _largest_batch(request: PlanRequest, fits: Callable[[PlanRequest], bool]) -> int | None:
    """Return the maximum sequences below the requested number that fit."""
    if request.batch == 1:
        return None
    return largest(lambda batch: fits(replace(request, batch=batch)), request.batch, step=1)
