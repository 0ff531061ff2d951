"""What gives memory back: the knobs, the largest first, with the bytes that each returns."""

from dataclasses import dataclass
from typing import Any

from llmctl.config import Config
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Plan
from llmctl.plan.memory import Quantized, kv_cache_bytes, module_bytes
from llmctl.units import format_bytes


@dataclass(frozen=True)
class Relief:
    """One knob.

    Attributes:
        knob: What to say on the command line.
        saved_bytes: What it gives back.
    """

    knob: str
    saved_bytes: int


def reliefs(plan: Plan, info: ModelInfo) -> tuple[Relief, ...]:
    """What would make `plan` smaller, the largest first. Knobs that give back less than a twentieth are left out."""
    dtype, memory = plan.model_kwargs["dtype"], plan.memory
    weights = sum(memory.weights.values())
    found = []
    if info.quantization_method is None:
        arguments = plan.model_kwargs.get("quantization_config") or {}
        half = "bfloat16" if dtype == "float32" else dtype
        ways: list[tuple[str, Quantized | None]] = []
        if not arguments:
            ways += [("--dtype bf16", None)] if dtype == "float32" else []
            ways += [("--quant 8bit", Quantized(8))]
        if not arguments.get("load_in_4bit"):
            ways += [("--quant 4bit", Quantized(4))]
        for knob, quantized in ways:
            smaller = sum(module_bytes(info, dtype=half, quantized=quantized).values())
            found.append(Relief(knob, weights - smaller))
    half_context = memory.context // 2
    cache = kv_cache_bytes(info, context=half_context, batch=memory.batch, dtype=dtype)
    found.append(
        Relief(
            f"half the tokens (prompt and --max-new-tokens together {half_context} instead of {memory.context})",
            memory.kv_cache_bytes - cache + memory.activation_bytes // 2,
        )
    )
    return tuple(
        sorted((r for r in found if r.saved_bytes > memory.total_bytes / 20), key=lambda relief: -relief.saved_bytes)
    )


def explain_out_of_memory(
    plan: Plan, info: ModelInfo, machine: Machine, config: Config, *, doing: str
) -> tuple[str, str, dict[str, Any]]:
    """The message, the hint and the details of an error for memory that ran out.

    Args:
        plan: What was planned.
        info: The model.
        machine: What was free when it was planned.
        config: What was asked.
        doing: `loading` or `generating`.
    """
    memory = plan.memory
    weights = sum(memory.weights.values())
    free = {f"cuda:{gpu.index}" if gpu.kind == "cuda" else "mps": gpu.free_bytes for gpu in machine.gpus}
    free["cpu"] = machine.ram_available_bytes
    were = ", ".join(f"{format_bytes(free[device])} on {device}" for device in plan.devices if device in free)
    message = (
        f"memory ran out while {doing} {plan.source}: planned {format_bytes(memory.total_bytes)} "
        f"(weights {format_bytes(weights)}, "
        f"cache and activations for {memory.context} tokens {format_bytes(memory.working_bytes)}, "
        f"runtime {format_bytes(memory.overhead_bytes)}); free were {were}"
    )
    knobs = reliefs(plan, info)
    hint = "; ".join(f"{relief.knob} gives back {format_bytes(relief.saved_bytes)}" for relief in knobs[:3])
    on_gpu = any(device.startswith("cuda") for device in plan.devices)
    if on_gpu and config.load.device_map not in ("auto", "cpu"):
        hint = "; ".join(part for part in (hint, "--device-map auto lets part of it lie in RAM") if part)
    details = {
        "planned_bytes": memory.total_bytes,
        "free_bytes": {device: free[device] for device in plan.devices if device in free},
        "gives_back": {relief.knob: relief.saved_bytes for relief in knobs},
    }
    return message, hint or "take a smaller model, or close other programs", details
