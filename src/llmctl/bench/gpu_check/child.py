"""The child process of a check: it runs steps one after the other and reports their results as they arrive."""

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from llmctl.bench.gpu_check.workplace import SkippedError, Workplace
from llmctl.errors import first_line
from llmctl.machine.child_process import WriteJson
from llmctl.platform_support import end_after

_TRACEBACK_LINES = 12
StepFunction = Callable[[Workplace], Iterator[Mapping[str, Any]]]


def say_steps(say: WriteJson, *, steps: Sequence[Mapping[str, Any]], seconds: float, folder: str, tiny: bool) -> None:
    """Run steps. Report `begun`, each `result`, and `ended` for each of them; stop after one that goes wrong.

    A step that takes longer than its budget, or than what is left of `seconds`, is ended together with this process.
    """
    os.environ["LLMCTL_HOME"] = os.path.join(folder, "home")  # noqa: PTH118 (nothing of the user is read or written)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if tiny:
        os.environ["OMP_NUM_THREADS"] = "1"  # more threads would only wait for each other
    end, workplace = time.monotonic() + seconds, Workplace.make(folder, tiny=tiny)
    for step in steps:
        left = min(step["seconds"], end - time.monotonic())
        say(begun=step["name"])
        if left < 1:
            say(ended={"status": "skipped", "reason": "no time was left"})
            continue
        end_after(left)
        outcome = _outcome(say, step["function"], workplace)
        end_after(0)
        say(ended=outcome)
        if outcome["status"] == "error":
            return


def _outcome(say: WriteJson, function: str, workplace: Workplace) -> dict[str, Any]:
    """Run a step, report its results, and return its status with the reason."""
    module, _, name = function.partition(":")
    try:
        run: StepFunction = getattr(import_module(module), name)
        for result in run(workplace):
            say(result=result)
    except SkippedError as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 (whatever goes wrong in a step is its result)
        lines = [line.rstrip() for part in traceback.format_exception(error) for line in part.splitlines()]
        reason = f"{type(error).__name__}: {first_line(error)}"
        return {"status": "error", "reason": reason, "traceback": lines[-_TRACEBACK_LINES:]}
    return {"status": "ok", "reason": workplace.take_headline()}
