"""Ctrl-C and SIGTERM: end at once or at a safe place, keep the state, and print how to continue."""

import shlex
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


class HeldInterrupts:
    """Delays Ctrl-C and SIGTERM until the work reaches a place where it can end.

    An exception in the middle of torch's own code can abort the process. A second signal is never delayed.
    """

    def __init__(self) -> None:
        self._is_holding = False
        self._pending: BaseException | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "HeldInterrupts":
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Delay signals from now on."""
        self._is_holding = True
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)

    def check(self) -> None:
        """Raise KeyboardInterrupt or Terminated if a signal has arrived; called where the work can end."""
        if self._pending is not None:
            raise self._pending

    def released_while_reading(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items; signals are not delayed during the wait for the next item, which may take long."""
        while True:
            held, self._is_holding = self._is_holding, False
            self.check()
            item = next(items, None)
            self._is_holding = held
            if item is None:
                return
            yield item

    def _receive(self, number: int, _frame: Any) -> None:
        wait = self._is_holding and self._pending is None
        self._pending = KeyboardInterrupt() if number == signal.SIGINT else Terminated(EXIT_TERMINATED)
        if not wait:
            raise self._pending


@contextmanager
def resumable(
    output: Output,
    *,
    arriving: Callable[[], bool] = lambda: True,
    kept: Callable[[], str] = lambda: "what arrived is kept",
) -> Iterator[None]:
    """Turn SIGTERM into an orderly end; after either signal, print how to continue if anything has arrived."""

    def end(_number: int, _frame: Any) -> None:
        raise Terminated(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        if arriving():
            same_command = shlex.join(["llmctl", *sys.argv[1:]])
            output.warn(f"stopped; {kept()}. To continue: {same_command}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
