"""The summary of a contender's runs: medians, spread, and each rate relative to its limit and the plan. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.bench.compare import Bound, Comparison, Outcome
from llmctl.bench.contender import bounding_device, dtype_of, proposes
from llmctl.bench.task import ONE_BY_ONE, Cell, Spread, spread
from llmctl.plan.work import decode_bytes, prefill_operations

# The report mentions estimates that are off by more than this.
_TOLERANCE = 0.3


@dataclass(frozen=True)
class CellSummary:
    """One cell over all runs.

    Attributes:
        through: `generate`, `engine` or `ONE_BY_ONE`.
        first_token_seconds: Time until every sequence has a token.
        prefill: Prompt tokens per second, all sequences together.
        decode: New tokens per second, all sequences together; None if there was only one token.
        prefill_share: Median prefill as a share of the device's maximum operations per second.
        decode_share: Median decode as a share of the maximum bandwidth of the device's memory.
        planned_prefill: Lowest and highest estimate of the plan; None for several sequences.
        planned_decode: Lowest and highest estimate of the plan for decoding; None for several sequences.
    """

    cell: Cell
    through: str
    first_token_seconds: Spread
    prefill: Spread
    decode: Spread | None
    prefill_share: float | None = None
    decode_share: float | None = None
    planned_prefill: tuple[float, float] | None = None
    planned_decode: tuple[float, float] | None = None

    @property
    def prefill_ratio(self) -> float | None:
        """Prefill relative to the plan; see `ratio`."""
        return ratio(self.prefill, self.planned_prefill)

    @property
    def decode_ratio(self) -> float | None:
        """Decoding relative to the plan; see `ratio`."""
        return ratio(self.decode, self.planned_decode)


@dataclass(frozen=True)
class Summary:
    """One contender over all its runs; memory in bytes.

    Attributes:
        load_seconds: Time from the first import to a ready model.
        cold_first_token_seconds: Time to the first token of the first answer, without warm-up.
        weights_bytes: Size of the weights in memory, on all devices.
        resident_bytes: Resident memory of the process after loading the model.
        anonymous_bytes: Resident memory without pages of files, which the system can drop.
        peak_memory_bytes: Maximum resident memory.
        gpu_peak_bytes: Maximum allocation of each GPU.
    """

    name: str
    load_seconds: Spread
    cold_first_token_seconds: Spread | None
    weights_bytes: int
    resident_bytes: Spread | None
    anonymous_bytes: Spread | None
    peak_memory_bytes: Spread | None
    gpu_peak_bytes: Mapping[str, int]
    cells: tuple[CellSummary, ...]


def ratio(measured: Spread | None, planned: tuple[float, float] | None) -> float | None:
    """Return 1 inside the planned range, else the measured median divided by the nearest end of the range."""
    if measured is None or planned is None:
        return None
    return measured.median / min(max(measured.median, planned[0]), planned[1])


def is_off(value: float | None) -> bool:
    """Return True if an estimate is so far off that the report should mention it."""
    return value is not None and abs(math.log(value)) > math.log(1 + _TOLERANCE)


def summarise(comparison: Comparison, outcome: Outcome) -> Summary | None:
    """Return the summary of one contender; None if no run completed."""
    runs, prepared = outcome.runs, outcome.contender.prepared
    if not runs or prepared is None:
        return None
    bound = comparison.bounds.get(bounding_device(prepared) or "")
    peaks: dict[str, int] = {}
    for run in runs:
        for device, size in run.ended["gpu_peak_bytes"].items():
            peaks[device] = max(size, peaks.get(device, 0))
    load_seconds = spread(run.loaded["load_seconds"] for run in runs)
    assert load_seconds is not None  # noqa: S101 (there is a run)
    return Summary(
        name=outcome.contender.name,
        load_seconds=load_seconds,
        cold_first_token_seconds=spread(run.ended["cold_first_token_seconds"] for run in runs),
        weights_bytes=sum(runs[0].loaded["device_bytes"].values()),
        resident_bytes=spread(run.loaded["resident_bytes"] for run in runs),
        anonymous_bytes=spread(run.loaded["anonymous_bytes"] for run in runs),
        peak_memory_bytes=spread(run.ended["peak_memory_bytes"] for run in runs),
        gpu_peak_bytes={device: size for device, size in peaks.items() if size},
        cells=tuple(_cell(comparison, outcome, cell, bound) for cell in comparison.task.cells),
    )


def _cell(comparison: Comparison, outcome: Outcome, cell: Cell, bound: Bound | None) -> CellSummary:
    cells = [run.cells[cell] for run in outcome.runs]
    expected = outcome.expected.get(cell)
    first, prefill, decode = (
        spread(figures[name] for figures in cells)
        for name in ("first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second")
    )
    assert first is not None  # noqa: S101 (there is a run)
    assert prefill is not None  # noqa: S101
    shares = _shares(comparison, outcome, cell, bound, prefill=prefill, decode=decode) if bound else (None, None)
    return CellSummary(
        cell=cell,
        through=cells[0]["through"],
        first_token_seconds=first,
        prefill=prefill,
        decode=decode,
        prefill_share=shares[0],
        decode_share=shares[1],
        planned_prefill=expected.prefill if expected else None,
        planned_decode=expected.decode if expected else None,
    )


def _shares(
    comparison: Comparison, outcome: Outcome, cell: Cell, bound: Bound, *, prefill: Spread, decode: Spread | None
) -> tuple[float | None, float | None]:
    """Return operations and bytes per second as shares of the limits."""
    prepared, loaded = outcome.contender.prepared, outcome.runs[0].loaded
    assert prepared is not None  # noqa: S101 (it ran)
    operations = sum(
        prefill_operations(prepared.info, parameters=loaded["parameters"], prompt_tokens=cell.prompt_tokens)
    )
    flops = bound.flops.get(dtype_of(prepared))
    prefill_share = operations / cell.prompt_tokens * prefill.median / flops if flops else None
    together = 1 if outcome.runs[0].cells[cell]["through"] == ONE_BY_ONE else cell.batch
    read_bytes = decode_bytes(
        prepared.info,
        context=cell.prompt_tokens + comparison.task.new_tokens // 2,
        batch=together,
        weights_bytes=sum(loaded["device_bytes"].values()),
        dtype=dtype_of(prepared),
    )
    decode_share = (
        read_bytes * decode.median / together / bound.bandwidth
        if read_bytes and decode and not proposes(prepared)
        else None
    )
    return prefill_share, decode_share
