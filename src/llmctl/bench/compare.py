"""The comparison of configurations. Each run is a separate process, and the configurations take turns."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

from llmctl import platform_support
from llmctl.bench.children import ask
from llmctl.bench.contender import Contender, bounding_device, dtype_of, estimates
from llmctl.bench.measure import job
from llmctl.bench.task import Cell, Task
from llmctl.errors import LlmctlError
from llmctl.loading.prepare import Prepared
from llmctl.machine.cpu_rates import read_cpu_rates
from llmctl.machine.detection import Machine, read_machine
from llmctl.plan.speed import Speed

# If other programs use more than this share of the processor, they affect the results.
BUSY_SHARE = 0.25
_SAMPLE_SECONDS = 0.3

OnStep = Callable[[str], None]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Bound:
    """The measured limits of a device.

    Attributes:
        bandwidth: Memory bandwidth in bytes per second; reads and writes of a copy both count.
        flops: Operations per second of a matrix product, by dtype.
        threads: CPU threads used.
    """

    bandwidth: float
    flops: Mapping[str, float]
    threads: int | None = None


@dataclass(frozen=True)
class Run:
    """The results of one process.

    Attributes:
        loaded: Load time, settings in use, and memory (see measure.say_run).
        cells: Measurements of each cell.
        ended: Memory at the end, and the time to the first token of the first answer.
        others_share: Share of the processor that other programs used just before the run, 0 to 1.
    """

    loaded: Facts
    cells: Mapping[Cell, Facts]
    ended: Facts
    others_share: float


@dataclass(frozen=True)
class Outcome:
    """The result of one contender.

    Attributes:
        expected: Estimates of the plan, by cell.
        runs: Completed runs.
        failure: Error that ended its runs, or None.
    """

    contender: Contender
    expected: Mapping[Cell, Speed] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    failure: LlmctlError | None = None


@dataclass(frozen=True)
class Comparison:
    """The result of a benchmark.

    Attributes:
        bounds: Limits of the machine's devices.
        load_average: Load average of the minute before the benchmark; None if the system has none.
        outcomes: One for each contender, in the order given.
        interrupted: True if Ctrl-C ended the benchmark; runs completed by then are included.
    """

    task: Task
    machine: Machine
    bounds: Mapping[str, Bound]
    load_average: float | None
    outcomes: tuple[Outcome, ...]
    interrupted: bool = False


def compare(contenders: Sequence[Contender], task: Task, *, on_step: OnStep = lambda _: None) -> Comparison:
    """Measure every contender. A failure of one contender is part of its outcome.

    An interrupt ends the benchmark early if a run is complete; otherwise it is raised.

    Args:
        on_step: Called with a description of the current step.

    Raises:
        MachineError: the bounds could not be measured because torch does not work.
    """
    load_average, machine = platform_support.load_average(), read_machine()
    bounds = measure_bounds(contenders, on_step)
    runs: dict[str, list[Run]] = {one.name: [] for one in contenders}
    failures = {one.name: one.failure for one in contenders}
    interrupted = False
    try:
        for number, one in product(range(task.runs), contenders):
            if failures[one.name] is None and one.prepared is not None:
                try:
                    runs[one.name].append(_run(one.prepared, task, partial(_report_step, on_step, one, number + 1)))
                except LlmctlError as error:
                    failures[one.name] = error
    except KeyboardInterrupt:
        if not any(runs.values()):
            raise
        interrupted = True
    rates = read_cpu_rates() if "cpu" in bounds else None
    outcomes = [
        Outcome(
            contender=one,
            expected=estimates(one.prepared, machine, task, cpu_rates=rates) if one.prepared else {},
            runs=tuple(runs[one.name]),
            failure=failures[one.name],
        )
        for one in contenders
    ]
    return Comparison(task, machine, bounds, load_average, tuple(outcomes), interrupted)


def _report_step(on_step: OnStep, one: Contender, number: int, text: str) -> None:
    on_step(f"{one.name}, run {number}: {text}")


def measure_bounds(contenders: Sequence[Contender], on_step: OnStep) -> dict[str, Bound]:
    """Measure the limits of each device that a contender uses, for the dtypes used on it."""
    wanted: dict[str, list[str]] = {}
    for prepared in (one.prepared for one in contenders if one.prepared is not None):
        device, dtype = bounding_device(prepared), dtype_of(prepared)
        if device is not None and dtype not in wanted.setdefault(device, []):
            wanted[device].append(dtype)
    if not wanted:
        return {}
    on_step("measuring this machine's limits")
    with closing(ask("bounds", devices=wanted)) as answers:
        return {answer["device"]: Bound(answer["bandwidth"], answer["flops"], answer["threads"]) for answer in answers}


def _run(prepared: Prepared, task: Task, on_step: OnStep) -> Run:
    """Run a configuration once in a new process. Raise LlmctlError if the run fails."""
    others = read_others_share()
    on_step("loading")
    loaded: Facts = {}
    ended: Facts = {}
    cells: dict[Cell, Facts] = {}
    todo = list(task.cells)
    with closing(ask("run", **job(prepared, task))) as answers:
        for message in answers:
            if "loaded" in message:
                loaded = message["loaded"]
                on_step("warming up")
            elif "begun" in message:
                on_step(f"{todo[0]}, {len(cells) + 1} of {len(task.cells)}")
            elif "cell" in message:
                cells[todo.pop(0)] = message["cell"]
            else:
                ended = message["ended"]
    return Run(loaded, cells, ended, others)


def read_others_share() -> float:
    """Return the share of the processor that other programs use, 0 to 1. Nothing of llmctl may be running."""
    import psutil

    return float(psutil.cpu_percent(interval=_SAMPLE_SECONDS)) / 100
