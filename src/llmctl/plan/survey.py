"""Every way to run a model on a machine, side by side: what each takes, whether it fits, and which one to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmctl.config import Config
from llmctl.errors import LlmctlError, MachineError
from llmctl.machine.detection import Machine
from llmctl.model.adapters import AdapterInfo
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision, Plan
from llmctl.plan.dtype import decide_dtype
from llmctl.plan.make import make_plan
from llmctl.plan.memory import unquantised_bytes
from llmctl.plan.placement import candidate_devices
from llmctl.plan.speed import Speed, estimate_speed
from llmctl.quant.backend import Variant
from llmctl.quant.registry import preferred

Verdict = Literal["fits", "spills", "too large", "impossible"]
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Way:
    """One way to run it.

    Attributes:
        name: `float32`, `bfloat16`, `8-bit`, `4-bit nf4`, `4-bit nf4 double`, or how the checkpoint is stored.
        changes: What a configuration has to say for it, by section.
        verdict: `fits`; `spills` (part of it in RAM beside a GPU); `too large`; `impossible` (the reason says why).
        plan: The plan, or None where there is none.
        free_bytes: What the devices that would be used have free.
        unquantised_bytes: What of the weights stays in half precision although the rest is quantised.
        spilled_blocks: How many blocks lie in RAM because the GPUs are full.
        largest_context: Where it does not fit: the most tokens for which it would; None where none would.
        speed: What to expect, or None where the device is not known.
        reason: Why it is impossible, in one line.
    """

    name: str
    changes: Mapping[str, Mapping[str, Any]]
    verdict: Verdict
    plan: Plan | None = None
    free_bytes: int = 0
    unquantised_bytes: int = 0
    spilled_blocks: int = 0
    largest_context: int | None = None
    speed: Speed | None = None
    reason: str = ""


def survey(
    config: Config,
    machine: Machine,
    info: ModelInfo,
    *,
    context: int,
    batch: int = 1,
    ram_bandwidth: float | None = None,
    draft: ModelInfo | None = None,
    adapters: Sequence[AdapterInfo] = (),
) -> tuple[Way, ...]:
    """Every way, the most exact first.

    Args:
        config: What was asked; each way changes its dtype and quantisation.
        machine: This computer, or one imagined.
        info: The model.
        context: Tokens of prompt and answer together.
        batch: Sequences at a time.
        ram_bandwidth: Bytes per second of the RAM, for the estimate of speed.
        draft: The model that `config.draft` names.
        adapters: Those that `config.model.adapters` names.
    """
    stored = info.stored_quantization
    if stored is not None:
        named: list[tuple[str, dict[str, dict[str, Any]]]] = [(f"as stored ({stored.name})", {})]
    else:
        half = str(_half_dtype(config, machine, info).value)
        named = [
            ("float32", {"load": {"dtype": "float32"}, "quantization": {"bits": None}}),
            (half, {"load": {"dtype": half}, "quantization": {"bits": None}}),
            *(
                (variant.name, {"load": {"dtype": half}, "quantization": dict(variant.section)})
                for variant in _variants(config, machine)
            ),
        ]
    return tuple(
        _way(
            name,
            changes,
            config,
            machine,
            info,
            context=context,
            batch=batch,
            ram_bandwidth=ram_bandwidth,
            draft=draft,
            adapters=adapters,
        )
        for name, changes in named
    )


def recommended(ways: tuple[Way, ...]) -> Way | None:
    """The way to take: the most exact one that fits, float32 left aside; else the one that spills least.

    float32 costs twice the memory of half precision for a difference that answers do not show, so it is only taken
    where nothing else fits.
    """
    fitting = [way for way in ways if way.verdict == "fits"]
    wanted = [way for way in fitting if way.name != "float32"] or fitting
    if wanted:
        return wanted[0]
    spilling = [way for way in ways if way.verdict == "spills"]
    return min(spilling, key=lambda way: way.spilled_blocks, default=None)


def _changed(config: Config, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    values = config.model_dump(exclude_unset=True)
    for section, part in changes.items():
        values[section] = {**values.get(section, {}), **part}
    return Config.model_validate(values)


def _variants(config: Config, machine: Machine) -> tuple[Variant, ...]:
    try:
        devices = candidate_devices(config, machine)
    except LlmctlError:
        devices = ()  # every way is impossible, and says why
    return preferred(config, machine, devices=devices).variants()


def _half_dtype(config: Config, machine: Machine, info: ModelInfo) -> Decision:
    """The half precision that this machine computes, and why."""
    dtype = config.load.dtype if config.load.dtype in _HALF else "auto"
    asking = _changed(config, {"load": {"dtype": dtype}, "quantization": {"bits": 4}})
    try:
        return decide_dtype(asking, machine, info, devices=candidate_devices(asking, machine))
    except LlmctlError:
        return Decision("dtype", "bfloat16", "the usual half precision")


def _way(
    name: str,
    changes: dict[str, dict[str, Any]],
    config: Config,
    machine: Machine,
    info: ModelInfo,
    *,
    context: int,
    batch: int,
    ram_bandwidth: float | None,
    draft: ModelInfo | None,
    adapters: Sequence[AdapterInfo],
) -> Way:
    asked = _changed(config, changes)
    try:
        plan = make_plan(asked, machine, info, context=context, batch=batch, draft=draft, adapters=adapters)
    except MachineError as error:
        if "weights_bytes" not in error.details:
            return Way(name, changes, "impossible", reason=error.message)
        largest = _largest_context(asked, machine, info, batch=batch, below=context, draft=draft, adapters=adapters)
        return Way(name, changes, "too large", largest_context=largest, reason=error.message)
    except LlmctlError as error:
        return Way(name, changes, "impossible", reason=error.message)
    if plan.model_kwargs["dtype"] in _HALF and config.load.dtype == "auto":
        reason = _half_dtype(config, machine, info)  # the way set it; this is why it is this one
        plan = plan.with_decision(reason)
    spilled = [module for module, device in plan.model_kwargs["device_map"].items() if device == "cpu"]
    beside_gpu = bool(spilled) and bool(machine.gpus) and asked.load.device_map != "cpu"
    fits_whole = None
    if beside_gpu:
        fits_whole = _largest_context(
            asked, machine, info, batch=batch, below=context, draft=draft, adapters=adapters, whole=True
        )
    return Way(
        name,
        changes,
        "spills" if beside_gpu else "fits",
        plan=plan,
        free_bytes=_free(plan, machine),
        unquantised_bytes=unquantised_bytes(info, plan.quantization),
        spilled_blocks=_blocks(spilled, info) if beside_gpu else 0,
        largest_context=fits_whole,
        speed=estimate_speed(plan, machine, info, ram_bandwidth=ram_bandwidth),
    )


def _blocks(modules: list[str], info: ModelInfo) -> int:
    """How many decoder blocks are among the modules; all of them where the one module is everything."""
    return info.layer_count if "" in modules else sum(module[-1].isdigit() for module in modules)


def _free(plan: Plan, machine: Machine) -> int:
    gpus = {gpu.device: gpu.free_bytes for gpu in machine.gpus}
    return sum(gpus.get(device, machine.ram_available_bytes) for device in plan.devices)


def _largest_context(
    config: Config,
    machine: Machine,
    info: ModelInfo,
    *,
    batch: int,
    below: int,
    draft: ModelInfo | None = None,
    adapters: Sequence[AdapterInfo] = (),
    whole: bool = False,
) -> int | None:
    """The most tokens below `below` for which there is a plan; with `whole`, one that leaves nothing in RAM."""

    def works(context: int) -> bool:
        try:
            plan = make_plan(config, machine, info, context=context, batch=batch, draft=draft, adapters=adapters)
        except LlmctlError:
            return False
        return not whole or "cpu" not in plan.devices

    if not works(1):
        return None
    low, high = 1, below
    while high - low > 16:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low
