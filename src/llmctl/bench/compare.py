"""The comparison of configurations: each run is a process of its own, and the configurations take turns."""

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
from llmctl.machine.detection import Machine, read_machine
from llmctl.plan.speed import Speed

# Above this share of the processor, other programs affect the figures.
BUSY_SHARE = 0.25
_LOOK_SECONDS = 0.3

Tell = Callable[[str], None]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Bound:
    """The measured limits of a device.

    Attributes:
        bandwidth: Bytes per second through its memory, reads and writes of a copy counted.
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
        loaded: Load time, settings in use, memory held (see measure.say_run).
        cells: Figures of each cell.
        ended: Memory at the end, and the first answer's time to its first token.
        others_share: Share of the processor that other programs took just before, 0 to 1.
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
        load_average: Load average of the minute before it began; None where the system has none.
        outcomes: One for each contender, in the order given.
        interrupted: Whether Ctrl-C ended it; runs completed by then are included.
    """

    task: Task
    machine: Machine
    bounds: Mapping[str, Bound]
    load_average: float | None
    outcomes: tuple[Outcome, ...]
    interrupted: bool = False


def compare(contenders: Sequence[Contender], task: Task, *, tell: Tell = lambda _: None) -> Comparison:
    """Measure every contender. One that fails is an outcome like the others.

    An interrupt ends the benchmark early once a run is complete; before that, it is raised.

    Args:
        tell: Callback for the current step.

    Raises:
        MachineError: the bounds could not be measured: torch does not work here.
    """
    load_average, machine = platform_support.load_average(), read_machine()
    bounds = measure_bounds(contenders, tell)
    runs: dict[str, list[Run]] = {one.name: [] for one in contenders}
    failures = {one.name: one.failure for one in contenders}
    interrupted = False
    try:
        for number, one in product(range(task.runs), contenders):
            if failures[one.name] is None and one.prepared is not None:
                try:
                    runs[one.name].append(_run(one.prepared, task, partial(_tell_of, tell, one, number + 1)))
                except LlmctlError as error:
                    failures[one.name] = error
    except KeyboardInterrupt:
        if not any(runs.values()):
            raise
        interrupted = True
    ram = bounds["cpu"].bandwidth if "cpu" in bounds else None
    outcomes = [
        Outcome(
            contender=one,
            expected=estimates(one.prepared, machine, task, ram_bandwidth=ram) if one.prepared else {},
            runs=tuple(runs[one.name]),
            failure=failures[one.name],
        )
        for one in contenders
    ]
    return Comparison(task, machine, bounds, load_average, tuple(outcomes), interrupted)


def _tell_of(tell: Tell, one: Contender, number: int, text: str) -> None:
    tell(f"{one.name}, run {number}: {text}")


def measure_bounds(contenders: Sequence[Contender], tell: Tell) -> dict[str, Bound]:
    """Measure the limits of each device that a contender uses, in the dtypes used on it."""
    wanted: dict[str, list[str]] = {}
    for prepared in (one.prepared for one in contenders if one.prepared is not None):
        device, dtype = bounding_device(prepared), dtype_of(prepared)
        if device is not None and dtype not in wanted.setdefault(device, []):
            wanted[device].append(dtype)
    if not wanted:
        return {}
    tell("measuring this machine's limits")
    with closing(ask("bounds", devices=wanted)) as answers:
        return {answer["device"]: Bound(answer["bandwidth"], answer["flops"], answer["threads"]) for answer in answers}


def _run(prepared: Prepared, task: Task, tell: Tell) -> Run:
    """Do one run in a fresh process. Raises LlmctlError."""
    others = read_others_share()
    tell("loading")
    loaded: Facts = {}
    ended: Facts = {}
    cells: dict[Cell, Facts] = {}
    todo = list(task.cells)
    with closing(ask("run", **job(prepared, task))) as answers:
        for message in answers:
            if "loaded" in message:
                loaded = message["loaded"]
                tell("warming up")
            elif "begun" in message:
                tell(f"{todo[0]}, {len(cells) + 1} of {len(task.cells)}")
            elif "cell" in message:
                cells[todo.pop(0)] = message["cell"]
            else:
                ended = message["ended"]
    return Run(loaded, cells, ended, others)


def read_others_share() -> float:
    """Return the share of the processor in use now, 0 to 1, while nothing of ours runs."""
    import psutil

    return float(psutil.cpu_percent(interval=_LOOK_SECONDS)) / 100
