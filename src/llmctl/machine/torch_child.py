"""The child process that asks torch for its GPUs, and writes the answer for `torch_gpus`.

It is run by its path, so that no package in the folder from which llmctl was started takes the place of an installed
one. Asking makes a context on every card, which would otherwise stay in the process that decides what to load.
"""

import importlib
import os
import sys
from pathlib import Path


def main(*, limit_seconds: float) -> None:
    """Write the answer, then end without the interpreter's clean-up, in which broken drivers crash."""
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    importlib.import_module("llmctl.platform_support").end_after(limit_seconds + 5)  # the parent may have been killed
    say = importlib.import_module("llmctl.machine.child_process").take_over_stdout()
    torch = importlib.import_module("torch")
    say(gpus=importlib.import_module("llmctl.machine.torch_gpus").describe_gpus(torch))
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(limit_seconds=float(sys.argv[1]))
