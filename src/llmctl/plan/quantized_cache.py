"""The decision to read quantised weights from the cache, or to fill it. Pure."""

from dataclasses import replace
from typing import TYPE_CHECKING

from llmctl.config import Config
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision, Plan
from llmctl.plan.memory import unquantised_bytes
from llmctl.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from llmctl.quant.cache import CacheEntry

KEY = "quantized_copy"
# Bytes of the disk that the cache leaves free.
RESERVE_BYTES = 5 * 2**30


def decide_cache(plan: Plan, config: Config, info: ModelInfo, *, entry: "CacheEntry | None", free_bytes: int) -> Plan:
    """Return a plan that quantises with the decision to read or to fill the cache.

    Args:
        plan: A plan that quantises.
        entry: The entry of the cache with exactly these weights.
        free_bytes: Free bytes of the disk that holds the cache.
    """
    if entry is not None and config.quantization.cache:
        reason = "written by an earlier run; quantization.cache: false quantises again"
        decision = Decision(KEY, f"{format_bytes(entry.size_bytes)} from {entry.made[:10]}", reason)
        memory = replace(plan.memory, mapped_bytes=_mapped_bytes(plan, info))
        return replace(plan, decisions=(*plan.decisions, decision), quantized_cache=entry.folder, memory=memory)
    obstacle = _obstacle(plan, config, free_bytes)
    if obstacle is not None:
        decision = Decision(KEY, "none", obstacle)
    else:
        size = format_bytes(weight_bytes(plan))
        decision = Decision(KEY, f"will be written, {size}", "the next start reads it instead of quantising")
    return replace(plan, decisions=(*plan.decisions, decision), fills_quantized_cache=obstacle is None)


def weight_bytes(plan: Plan) -> int:
    """Return the size of the quantised weights on disk, which is their size in memory."""
    return sum(plan.memory.weights.values())


def with_decision(plan: Plan, value: str, reason: str) -> Plan:
    """Return the plan with its quantised-cache decision replaced."""
    decision = Decision(KEY, value, reason)
    return replace(plan, decisions=tuple(decision if d.key == KEY else d for d in plan.decisions))


def _mapped_bytes(plan: Plan, info: ModelInfo) -> int:
    """Return the bytes of an entry that are in memory twice until loading ends; see `memory.mapped_bytes`."""
    assert plan.quantization is not None  # noqa: S101 (the plan quantises)
    backend_bytes = plan.quantization.backend.mapped_bytes(replace(plan.quantization, is_stored=True))
    return (
        max(weight_bytes(plan) - unquantised_bytes(info, plan.quantization), 0)
        if backend_bytes is None
        else backend_bytes
    )


def _obstacle(plan: Plan, config: Config, free_bytes: int) -> str | None:
    """Return why the cache is not filled, or None."""
    limit, size = parse_bytes(config.quantization.cache_size), weight_bytes(plan)
    if not config.quantization.cache:
        return "quantization.cache is false"
    obstacle = plan.quantization.backend.cache_obstacle() if plan.quantization is not None else None
    if obstacle is not None:
        return obstacle
    if plan.is_split:
        return "part of the model is in RAM, unquantised"
    if plan.model_kwargs["trust_remote_code"]:
        return "the model's own code runs, and llmctl cannot know what it does to the weights"
    if size > limit:
        return f"it would take {format_bytes(size)}, and quantization.cache_size is {format_bytes(limit)}"
    if free_bytes - size < RESERVE_BYTES:
        free, reserve = format_bytes(free_bytes), format_bytes(RESERVE_BYTES)
        return f"it would take {format_bytes(size)}; the disk has {free} free, and {reserve} must stay free"
    return None
