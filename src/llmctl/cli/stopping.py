"""How long work ends when it is told to: at once, with its state kept, saying how to go on."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmctl.cli.render import Output
from llmctl.errors import EXIT_TERMINATED


class Terminated(SystemExit):
    """SIGTERM arrived."""


@contextmanager
def resumable(
    output: Output,
    *,
    arriving: Callable[[], bool] = lambda: True,
    kept: Callable[[], str] = lambda: "what arrived is kept",
) -> Iterator[None]:
    """Turn SIGTERM into an orderly end, and say after either signal how to go on, if anything was arriving."""

    def end(_number: int, _frame: Any) -> None:
        raise Terminated(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        if arriving():
            output.warn(f"stopped; {kept()}. To go on: {_same_command()}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _same_command() -> str:
    import shlex

    return shlex.join(["llmctl", *sys.argv[1:]])
