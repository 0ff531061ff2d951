"""Whether a quantised copy of the weights that an earlier run kept is read, or one is kept now. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llmctl.config import Config
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision, Plan
from llmctl.plan.memory import unquantised_bytes
from llmctl.units import format_bytes, parse_bytes

KEY = "quantized_copy"
# What keeping copies leaves free on the disk.
RESERVE_BYTES = 5 * 2**30


@dataclass(frozen=True)
class QuantizedCopy:
    """Weights as they were after quantising, kept on disk.

    Attributes:
        folder: Where they are.
        source: The model: its Hub id, or its folder as it was named.
        origin: The folder that they were made from.
        commit: The commit on the Hub, or None for a plain folder.
        fingerprint: What a plain folder's weights looked like; empty where there is a commit.
        kind: `bitsandbytes 4-bit nf4`.
        dtype: The dtype of what is not quantised.
        versions: The libraries that made it.
        made: The date, ISO 8601, UTC.
        size_bytes: The size of its files.
        last_used: When it was last loaded, in seconds since 1970.
    """

    folder: Path
    source: str
    origin: Path
    commit: str | None
    fingerprint: str
    kind: str
    dtype: str
    versions: Mapping[str, str]
    made: str
    size_bytes: int
    last_used: float


def decide_copy(plan: Plan, config: Config, info: ModelInfo, *, found: QuantizedCopy | None, free_bytes: int) -> Plan:
    """Add to a plan that quantises whether a copy is read or kept, and why.

    Args:
        plan: What was decided so far. Returned as it is where it does not quantise.
        config: What was asked.
        info: The model.
        found: A copy that has exactly these weights.
        free_bytes: What the disk of the copies has free.
    """
    if not plan.quantizes:
        return plan
    if found is not None and config.quantization.cache:
        reason = "kept by an earlier run, so nothing is quantised now; quantization.cache: false does it anew"
        decision = Decision(KEY, f"{format_bytes(found.size_bytes)} from {found.made[:10]}", reason)
        memory = replace(plan.memory, mapped_bytes=_mapped_bytes(plan, info))
        return replace(plan, decisions=(*plan.decisions, decision), copy_folder=found.folder, memory=memory)
    why_not = _why_not_kept(plan, config, free_bytes)
    size = format_bytes(copy_bytes(plan))
    if why_not is not None:
        decision = Decision(KEY, "none", why_not)
    else:
        decision = Decision(KEY, f"will be kept, {size}", "the next start reads it instead of quantising")
    return replace(plan, decisions=(*plan.decisions, decision), keep_copy=why_not is None)


def _mapped_bytes(plan: Plan, info: ModelInfo) -> int:
    """What of a copy lies in memory twice for a while: bitsandbytes copies out of the map, llmctl's format stays there.

    See `memory.mapped_bytes`.
    """
    assert plan.quantization is not None  # noqa: S101 (the plan quantises)
    known = plan.quantization.backend.mapped_bytes(replace(plan.quantization, is_stored=True))
    return max(copy_bytes(plan) - unquantised_bytes(info, plan.quantization), 0) if known is None else known


def copy_bytes(plan: Plan) -> int:
    """The size of the quantised weights on disk: that of the loaded weights."""
    return sum(plan.memory.weights.values())


def told(plan: Plan, value: str, reason: str) -> Plan:
    """The plan with another word about its copy."""
    decision = Decision(KEY, value, reason)
    return replace(plan, decisions=tuple(decision if d.key == KEY else d for d in plan.decisions))


def _why_not_kept(plan: Plan, config: Config, free_bytes: int) -> str | None:
    limit, size = parse_bytes(config.quantization.cache_size), copy_bytes(plan)
    if not config.quantization.cache:
        return "quantization.cache is false"
    obstacle = plan.quantization.backend.cache_obstacle() if plan.quantization is not None else None
    if obstacle is not None:
        return obstacle
    if len({device.partition(":")[0] for device in plan.devices}) > 1:
        return "part of the model lies in RAM, unquantised"
    if plan.model_kwargs["trust_remote_code"]:
        return "the model's own code runs, and llmctl cannot know what it does to the weights"
    if size > limit:
        return f"it would take {format_bytes(size)}, and quantization.cache_size is {format_bytes(limit)}"
    if free_bytes - size < RESERVE_BYTES:
        free = format_bytes(free_bytes)
        return f"it would take {format_bytes(size)}, and the disk has {free} free, of which 5 GiB stay so"
    return None
