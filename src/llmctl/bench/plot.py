"""The chart of a comparison, drawn with matplotlib."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.bench.compare import Comparison
from llmctl.bench.summary import CellSummary, Summary, summarise
from llmctl.bench.task import Spread
from llmctl.errors import MachineError, UserError
from llmctl.paths import check_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")


def check_plot(file: Path) -> None:
    """Check, before anything is measured, that a chart can be written.

    Raises:
        UserError: the file is neither .png nor .svg, or its folder does not exist.
        MachineError: this user may not write there, or matplotlib is not installed.
    """
    if file.suffix.lower().removeprefix(".") not in FORMATS:
        raise UserError(f"{file}: a chart is a .png or an .svg file", hint="--plot speed.svg")
    if not file.absolute().parent.is_dir():
        raise UserError(f"there is no folder {file.absolute().parent}", hint="create it, or give another --plot FILE")
    check_output(file, flag="--plot")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "a chart needs matplotlib, which is not installed", hint="pip install 'llmctl-hf[plot]'"
        ) from error


def draw(comparison: Comparison, file: Path) -> None:
    """Write a chart with bars for prefill and decode. Error bars show the minimum and maximum of the runs.

    Raises:
        MachineError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    all_summaries = [summarise(comparison, outcome) for outcome in comparison.outcomes]
    summaries = [summary for summary in all_summaries if summary is not None]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, summaries, "prefill, tokens per second", lambda cell: cell.prefill)
    _panel(right, summaries, "decode, tokens per second", lambda cell: cell.decode)
    right.legend(frameon=False)
    sources = ", ".join(dict.fromkeys(outcome.contender.source for outcome in comparison.outcomes))
    figure.suptitle(f"{sources}: median of {comparison.task.runs}")
    try:
        _save(figure, file)
    except OSError as error:
        raise MachineError(
            f"the chart cannot be written to {file}: {error.strerror}", hint="--plot elsewhere.svg"
        ) from error


def _panel(
    axes: "Axes", summaries: list[Summary], title: str, figure_of: Callable[[CellSummary], Spread | None]
) -> None:
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    if not summaries:
        return
    cells = [cell.cell for cell in summaries[0].cells]
    width = 0.8 / len(summaries)
    for number, summary in enumerate(summaries):
        places, values, errors = [], [], ([], [])  # type: ignore[var-annotated]
        for place, cell in enumerate(summary.cells):
            value = figure_of(cell)
            if value is not None:
                places.append(place + (number - (len(summaries) - 1) / 2) * width)
                values.append(value.median)
                errors[0].append(value.median - value.low)
                errors[1].append(value.high - value.median)
        axes.bar(places, values, width, label=summary.name, yerr=errors, capsize=3)
    axes.set_xticks(range(len(cells)), [str(cell) for cell in cells])
    axes.set_xlabel("tokens of the prompt x sequences")


def _save(figure: Any, file: Path) -> None:
    """Write a temporary file and rename it, so that an existing chart is kept until the new one is complete."""
    kind = file.suffix.lower().removeprefix(".")
    handle, beside = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            figure.savefig(out, format=kind, dpi=120)
            out.flush()
            os.fsync(out.fileno())
        Path(beside).replace(file)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
