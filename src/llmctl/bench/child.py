"""The child process of a benchmark: it measures the limits of this machine, or runs one configuration once.

The job is one line of JSON on standard input, which then stays open: when it closes, the parent is gone and this
process ends too. Each line on standard output is a JSON object, written as soon as it is known.
"""

import json
import os
import sys
import threading
from importlib import import_module

from llmctl.errors import LlmctlError
from llmctl.machine.child_process import take_over_stdout

_QUESTIONS = {
    "bounds": ("llmctl.bench.bounds", "say_bounds"),
    "run": ("llmctl.bench.measure", "say_run"),
    "gpu_check": ("llmctl.bench.gpu_check.child", "say_steps"),
}


def main() -> None:
    """Do one job. An LlmctlError is reported to the parent; any other exception ends the process with its traceback."""
    say = take_over_stdout()
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, name = _QUESTIONS[job.pop("question")]
    try:
        getattr(import_module(module), name)(say, **job)
        say(done=True)
    except LlmctlError as error:
        say(failed={"kind": error.kind, "message": error.message, "hint": error.hint})
    os._exit(0)  # skips the interpreter's clean-up, which takes seconds with a large model in memory


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
