"""The parent side of a check: it runs the steps in child processes and reports each of them."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llmctl.bench.children import ask
from llmctl.bench.gpu_check.report import Report, Status, wrong_results
from llmctl.bench.gpu_check.steps import Step, chosen_groups
from llmctl.errors import LlmctlError, MachineError
from llmctl.machine.detection import Machine

TOTAL_SECONDS = 470.0  # of eight minutes; the rest is for starting and ending processes
_LEAST_SECONDS = 3.0
_KINDS = ("cuda", "rocm")
Ask = Callable[..., Iterator[Mapping[str, Any]]]


def require_gpu(machine: Machine) -> None:
    """Raise MachineError if there is no GPU that this check knows: one of NVIDIA, or of AMD with ROCm."""
    if not any(gpu.kind in _KINDS and gpu.torch_has_code is not False for gpu in machine.gpus):
        raise MachineError("there is no NVIDIA or AMD GPU here that this build of torch can use (llmctl doctor)")


def run_check(*, tiny: bool = False, seconds: float = TOTAL_SECONDS, names: Sequence[str] = ()) -> Iterator[Report]:
    """Run the steps and yield a report after each. The last report has the outcome of all.

    Args:
        tiny: Run every step with tiny models on the CPU, in one process, to test the check itself.
        seconds: Maximum duration of all steps.
        names: Names of steps; by default all.
    """
    with tempfile.TemporaryDirectory(prefix="llmctl-gpu-check-") as folder:
        groups = chosen_groups(tuple(names), one_process=tiny)
        yield from run_groups(groups, seconds=seconds, folder=folder, tiny=tiny)


def run_groups(
    groups: Sequence[Sequence[Step]],
    *,
    seconds: float,
    ask: Ask = ask,
    clock: Callable[[], float] = time.monotonic,
    **job: Any,
) -> Iterator[Report]:
    """Run groups of steps, each in a process of its own, and yield the reports.

    After a step that went wrong, the rest of its group runs in a new process.

    Args:
        ask: Gives a job to a child process and yields its messages.
        job: Further arguments of the child.
    """
    began, statuses = clock(), dict[str, Status]()
    for group in groups:
        rest = list(group)
        while rest:
            left = seconds - (clock() - began)
            for report in _one_process(rest, seconds=left, ask=ask, clock=clock, job=job):
                statuses[report.step] = report.status
                yield report
            rest = [step for step in rest if step.name not in statuses]
    bad = [name for name, status in statuses.items() if status not in ("ok", "skipped")]
    yield Report(
        "summary",
        "failed" if bad else "ok",
        clock() - began,
        f"went wrong: {', '.join(bad)}" if bad else "nothing went wrong",
        {"steps": statuses},
    )


def _one_process(
    steps: Sequence[Step], *, seconds: float, ask: Ask, clock: Callable[[], float], job: Mapping[str, Any]
) -> Iterator[Report]:
    """Yield the reports of steps that run in one process, up to one that goes wrong; at least one report."""
    if seconds < _LEAST_SECONDS:
        yield from (Report(step.name, "skipped", reason="no time was left") for step in steps)
        return
    waiting, results, began = list(steps), dict[str, Any](), clock()
    try:
        for message in ask("gpu_check", steps=[asdict(step) for step in steps], seconds=seconds, **job):
            if "begun" in message:
                began, results = clock(), {}
            elif "result" in message:
                results |= message["result"]
            elif "ended" in message:
                report = _report(waiting.pop(0), message["ended"], results, clock() - began)
                yield report
                if not report.is_good:
                    return
    except LlmctlError as error:
        yield _unfinished(waiting[0], error, results, clock() - began, seconds=seconds)


def _report(step: Step, ended: Mapping[str, Any], results: dict[str, Any], seconds: float) -> Report:
    """Return the report of a step that ended by itself."""
    status, wrong = ended["status"], wrong_results(results)
    if status == "ok" and wrong:
        return Report(step.name, "failed", seconds, f"wrong: {'; '.join(wrong)}", results)
    return Report(step.name, status, seconds, ended.get("reason", ""), results, tuple(ended.get("traceback", ())))


def _unfinished(step: Step, error: LlmctlError, results: dict[str, Any], taken: float, *, seconds: float) -> Report:
    """Return the report of a step whose process ended."""
    limit = min(step.seconds, seconds)
    if taken > limit - 2:  # the alarm of the child has whole seconds
        return Report(step.name, "timeout", taken, f"it was ended after {taken:.0f} s", results)
    return Report(step.name, "died", taken, error.message, results)
