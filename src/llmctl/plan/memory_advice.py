"""Advice for out-of-memory errors: options that make a plan smaller, with the bytes that each saves."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.config import Config
from llmctl.errors import MachineError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.cache_memory import kv_cache_bytes
from llmctl.plan.decision import Plan
from llmctl.plan.gpus import is_card
from llmctl.plan.make import has_plan
from llmctl.plan.memory import module_bytes
from llmctl.plan.options import fitting_options, quantization_options, smaller_options
from llmctl.plan.request import PlanRequest
from llmctl.quant.backend import QuantBackend, Quantization
from llmctl.quant.registry import preferred
from llmctl.units import format_bytes


@dataclass(frozen=True)
class Saving:
    """An option that makes a plan smaller.

    Attributes:
        option: The option as it is typed on the command line.
        bytes: Bytes that it saves.
    """

    option: str
    bytes: int


def possible_savings(plan: Plan, info: ModelInfo, backend: QuantBackend) -> tuple[Saving, ...]:
    """Return the options that save at least a twentieth of `plan`'s memory, the largest saving first.

    `backend` is the one that would quantise the weights.
    """
    memory = plan.memory
    half_context = memory.context // 2
    cache = kv_cache_bytes(info, context=half_context, batch=memory.batch, dtype=plan.model_kwargs["dtype"])
    shorter = Saving(
        f"half the tokens (prompt and --max-new-tokens together {half_context} instead of {memory.context})",
        memory.kv_cache_bytes - cache + memory.activation_bytes // 2,
    )
    savings = [*_smaller_weights(plan, info, backend), shorter]
    return tuple(sorted((s for s in savings if s.bytes > memory.total_bytes / 20), key=lambda saving: -saving.bytes))


def _smaller_weights(plan: Plan, info: ModelInfo, backend: QuantBackend) -> list[Saving]:
    dtype = plan.model_kwargs["dtype"]
    bits = plan.quantization.bits if plan.quantization is not None else None
    options: list[tuple[str, Quantization | None]] = []
    if dtype == "float32" and bits is None:
        options.append(("--dtype bf16", None))
    options += [(option, backend.scheme(fewer)) for option, fewer in quantization_options(info, bits)]
    half = "bfloat16" if dtype == "float32" else dtype
    weights = sum(plan.memory.weights.values())
    return [
        Saving(option, weights - sum(module_bytes(info, dtype=half, quantization=quantization).values()))
        for option, quantization in options
    ]


def _fitting(savings: Sequence[Saving], plan: Plan, info: ModelInfo, machine: Machine, config: Config) -> list[Saving]:
    """Return the savings without variants that have no plan on this machine."""
    memory = plan.memory
    request = PlanRequest(config, machine, info, context=memory.context, batch=memory.batch)
    excluded = set(smaller_options(request)) - set(fitting_options(request, has_plan))
    return [saving for saving in savings if saving.option not in excluded]


def out_of_memory_error(plan: Plan, info: ModelInfo, machine: Machine, config: Config, *, doing: str) -> MachineError:
    """Return an error with the planned and the free memory, and the options that save some.

    Args:
        machine: The machine at the time of planning.
        doing: `loading` or `generating with`.
    """
    memory = plan.memory
    weights = sum(memory.weights.values())
    free = {gpu.device: gpu.free_bytes for gpu in machine.gpus}
    free["cpu"] = machine.ram_available_bytes
    free = {device: free[device] for device in plan.devices if device in free}
    savings = _fitting(
        possible_savings(plan, info, preferred(config, machine, devices=plan.devices)), plan, info, machine, config
    )
    hints = [f"{saving.option} saves {format_bytes(saving.bytes)}" for saving in savings[:3]]
    on_gpu = any(map(is_card, plan.devices))
    if on_gpu and config.load.device_map not in ("auto", "cpu"):
        hints.append("--device-map auto puts part of it in RAM")
    return MachineError(
        f"memory ran out while {doing} {plan.source}: planned {format_bytes(memory.total_bytes)} "
        f"(weights {format_bytes(weights)}, "
        f"cache and activations for {memory.context} tokens {format_bytes(memory.working_bytes)}, "
        f"{f'images {format_bytes(memory.images.total_bytes)}, ' if memory.images.total_bytes else ''}"
        f"runtime {format_bytes(memory.overhead_bytes)}); "
        f"free were {', '.join(f'{format_bytes(size)} on {device}' for device, size in free.items())}",
        hint="; ".join(hints) or "choose a smaller model, or close other programs",
        details={
            "planned_bytes": memory.total_bytes,
            "free_bytes": free,
            "gives_back": {saving.option: saving.bytes for saving in savings},
        },
    )
