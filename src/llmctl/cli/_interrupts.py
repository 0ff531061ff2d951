"""How long work ends when it is told to: at once, with its state kept, saying how to go on."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from llmctl.cli._render import Output
from llmctl.errors import EXIT_TERMINATED

T = TypeVar("T")


class Terminated(SystemExit):
    """SIGTERM arrived."""


class Gentle:
    """Holds Ctrl-C and SIGTERM back, from `begin` on, until the work comes to a place where it can end.

    An exception in the middle of torch's own code can abort the process. A second signal does not wait.
    """

    def __init__(self) -> None:
        self._holds = False
        self._arrived: BaseException | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Gentle":
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Hold signals back from now on."""
        self._holds = True
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def go_on(self) -> None:
        """A place where the work can end. Raises KeyboardInterrupt or Terminated when a signal has arrived."""
        if self._arrived is not None:
            raise self._arrived

    def reading(self, items: Iterator[T]) -> Iterator[T]:
        """The same items; while the next one is waited for, which may be long, nothing is held back."""
        while True:
            held, self._holds = self._holds, False
            self.go_on()
            item = next(items, None)
            self._holds = held
            if item is None:
                return
            yield item

    def _note(self, number: int, _frame: Any) -> None:
        waits = self._holds and self._arrived is None
        self._arrived = KeyboardInterrupt() if number == signal.SIGINT else Terminated(EXIT_TERMINATED)
        if not waits:
            raise self._arrived


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
