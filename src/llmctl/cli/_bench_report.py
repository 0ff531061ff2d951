"""The report of `llmctl bench`: tables, bars, and the document of `--json`."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from llmctl._version import __version__
from llmctl.bench import Comparison, Outcome, Summary, summarise
from llmctl.bench.compare import BUSY_SHARE
from llmctl.bench.summary import CellSummary, is_off
from llmctl.bench.task import Spread
from llmctl.cli._render import Output
from llmctl.units import format_bytes


def show(output: Output, comparison: Comparison) -> None:
    """Print the report for people, 80 columns wide with names of ordinary length."""
    pairs = [(outcome, summarise(comparison, outcome)) for outcome in comparison.outcomes]
    summaries = [summary for _, summary in pairs if summary is not None]
    task = comparison.task
    times = f"{task.runs} runs" if task.runs > 1 else "one run: the spread is unknown"
    output.heading(f"{_model_text(comparison)}: {task.new_tokens} new tokens, {times}")
    output.pairs([*_machine_rows(comparison), *_decided_rows(comparison)])
    output.line("")
    columns = ("", "load s", "cold s", "weights", "held", "anonymous", "peak")
    output.table(
        columns, [_memory_row(outcome, summary) for outcome, summary in pairs], drop=("anonymous", "held", "cold s")
    )
    if summaries:
        output.line("")
        speed_columns = ("", "prompt", "first s", "prefill/s", "GEMM", "decode/s", "RAM", "plan")
        rows = [_speed_row(one, cell) for one in summaries for cell in one.cells]
        output.table(speed_columns, rows, drop=("plan", "RAM", "GEMM"))
        output.line("")
        output.heading("decode, tokens per second, all sequences together")
        output.bars(list(_bars(summaries)))
    if remarks := list(_remarks(comparison, summaries)):
        output.line("")
        output.pairs(remarks)


def _model_text(comparison: Comparison) -> str:
    return ", ".join(dict.fromkeys(outcome.contender.source for outcome in comparison.outcomes))


def _machine_rows(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for device, bound in comparison.bounds.items():
        rates = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, flops in bound.flops.items())
        threads = f", {bound.threads} thread{'s' if bound.threads > 1 else ''}" if bound.threads else ""
        yield f"{device}{threads}", f"memory {bound.bandwidth / 1e9:.3g} GB/s (copy), matrix product {rates}"
    if comparison.load_average is not None:
        yield "load average", f"{comparison.load_average:.2f} on {comparison.machine.physical_cores} cores"


def _decided_rows(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for outcome in comparison.outcomes:
        name = outcome.contender.name
        if outcome.runs:
            loaded = outcome.runs[0].loaded
            on = ", ".join(loaded["device_bytes"])
            quantized = f", {loaded['quantization']}" if loaded["quantization"] != "none" else ""
            yield name, f"{loaded['dtype']}{quantized}, {loaded['attn_implementation']}, on {on}"
        if outcome.failure is not None:
            after = f" after {len(outcome.runs)} runs" if outcome.runs else ""
            yield name, f"failed{after}: {' '.join(outcome.failure.message.split())}"


def _memory_row(outcome: Outcome, summary: Summary | None) -> tuple[str, ...]:
    if summary is None:
        return (outcome.contender.name, "failed" if outcome.failure else "not run", "", "", "", "", "")
    sizes = (summary.resident_bytes, summary.anonymous_bytes, summary.peak_memory_bytes)
    gpus = "".join(f", {device} {format_bytes(size)}" for device, size in summary.gpu_peak_bytes.items())
    texts = [format_bytes(int(size.median)) if size else "?" for size in sizes]
    return (
        summary.name,
        spread_text(summary.load_seconds),
        spread_text(summary.cold_first_token_seconds),
        format_bytes(summary.weights_bytes),
        texts[0],
        texts[1],
        texts[2] + gpus,
    )


def _speed_row(summary: Summary, one: CellSummary) -> tuple[str, ...]:
    return (
        summary.name,
        str(one.cell),
        number_text(one.first_token_seconds.median),
        spread_text(one.prefill),
        _share_text(one.prefill_share),
        spread_text(one.decode),
        _share_text(one.decode_share),
        _ratio_text(one.decode_ratio),
    )


def spread_text(value: Spread | None) -> str:
    """Return the median, and the range of several values: `31.2 (30.1-33)`."""
    if value is None:
        return "?"
    spread = f" ({number_text(value.low)}-{number_text(value.high)})" if value.count > 1 else ""
    return f"{number_text(value.median)}{spread}"


def number_text(value: float) -> str:
    """Return a number with three digits and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share_text(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def _ratio_text(value: float | None) -> str:
    return "" if value is None else "ok" if value == 1 else f"x{value:.2g}"


def _bars(summaries: Sequence[Summary]) -> Iterator[tuple[str, float, float]]:
    for one in summaries:
        for cell in one.cells:
            if cell.decode is not None:
                yield f"{one.name}  {cell.cell}", cell.decode.median, cell.decode.high


_LEGEND = (
    ("cold", "seconds to the first token, without warm-up"),
    ("held", "memory of the process with the model loaded; anonymous: without mapped files"),
    ("prompt", "tokens x concurrent sequences"),
    ("GEMM", "operations as a share of the rate of a matrix product here"),
    ("RAM", "bytes read as a share of the rate of a copy here"),
    ("plan", "ok: decoding is within the range of llmctl plan; x2: twice its nearer end"),
)


def _remarks(comparison: Comparison, summaries: Sequence[Summary]) -> Iterator[tuple[str, str]]:
    """Yield the notes that a reader of the measurements needs."""
    if comparison.interrupted:
        counts = ", ".join(f"{outcome.contender.name} {len(outcome.runs)}" for outcome in comparison.outcomes)
        yield "interrupted", f"complete runs of {comparison.task.runs}: {counts}"
    if summaries:
        yield from _LEGEND
    for name, cell, phase, value, planned in _off(summaries):
        expected = f"{number_text(planned[0])}-{number_text(planned[1])}"
        yield "plan is off", f"{name}, {cell}: {phase} expected at {expected}, measured {number_text(value.median)}"
    shares = [run.others_share for outcome in comparison.outcomes for run in outcome.runs]
    if busy := [share for share in shares if share > BUSY_SHARE]:
        when = f"before {len(busy)} of {len(shares)} runs"
        yield "busy", f"other programs took up to {max(busy):.0%} of this machine {when}: results are unreliable"


def _off(summaries: Sequence[Summary]) -> Iterator[tuple[str, Any, str, Spread, tuple[float, float]]]:
    for one in summaries:
        for cell in one.cells:
            if is_off(cell.prefill_ratio) and cell.planned_prefill:
                yield one.name, cell.cell, "prefill", cell.prefill, cell.planned_prefill
            if is_off(cell.decode_ratio) and cell.planned_decode and cell.decode:
                yield one.name, cell.cell, "decode", cell.decode, cell.planned_decode


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the document of `--json`: the measurements of every run and their summary."""
    machine, task = comparison.machine, comparison.task
    return {
        "task": asdict(task),
        "machine": {
            "system": machine.system,
            "architecture": machine.architecture,
            "physical_cores": machine.physical_cores,
            "cpu_features": sorted(machine.cpu_features),
            "ram_total_bytes": machine.ram_total_bytes,
            "gpus": [gpu.name for gpu in machine.gpus],
            "load_average": comparison.load_average,
            "bounds": {device: asdict(bound) for device, bound in comparison.bounds.items()},
        },
        "versions": {"llmctl": __version__, "python": platform.python_version(), **machine.packages},
        "interrupted": comparison.interrupted,
        "configs": [_outcome_document(comparison, outcome) for outcome in comparison.outcomes],
    }


def _outcome_document(comparison: Comparison, outcome: Outcome) -> dict[str, Any]:
    failure, prepared = outcome.failure, outcome.contender.prepared
    summary = summarise(comparison, outcome)
    return {
        "name": outcome.contender.name,
        "model": {"source": outcome.contender.source, "commit": prepared.resolved.commit if prepared else None},
        "asked": outcome.contender.config.model_dump(mode="json", exclude_unset=True),
        "decided": dict(prepared.plan.model_kwargs) if prepared else None,
        "failure": None
        if failure is None
        else {"kind": failure.kind, "message": failure.message, "hint": failure.hint},
        "runs": [
            {
                "loaded": dict(run.loaded),
                "cells": [dict(figures) for figures in run.cells.values()],
                "ended": dict(run.ended),
                "others_share": run.others_share,
            }
            for run in outcome.runs
        ],
        "summary": None if summary is None else _summary_document(summary),
    }


def _summary_document(summary: Summary) -> dict[str, Any]:
    body = asdict(summary)
    for cell, one in zip(body["cells"], summary.cells, strict=True):
        cell |= {**cell.pop("cell"), "prefill_ratio": one.prefill_ratio, "decode_ratio": one.decode_ratio}
    return body
