"""Work that comes from a model's repository, done where it can be stopped: in a forked child with limits.

The Jinja sandbox keeps a chat template from reaching Python, but not from looping for hours or building a string of
gigabytes, and neither can be interrupted from inside the process. So the template runs in a child that the system ends.
"""

import itertools
import json
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

SECONDS = 10
EXTRA_BYTES = 1_000_000_000
RESULT_LIMIT_BYTES = 100_000_000
IS_BOUNDED = sys.platform == "linux"  # elsewhere forking a process that has loaded torch is not safe


class TooMuchError(Exception):
    """It took more time or memory than it may, or its result is too large."""


class FailedError(Exception):
    """It raised. `kind` is the name of the exception's class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def run_bounded(work: Callable[[], Any], *, seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> Any:
    """The result of `work`, which must be JSON, computed in a child process with limits.

    Only on Linux: elsewhere forking a process that has loaded torch is not safe, and `work` runs here without limits.

    Args:
        work: What to do. It must not compute with torch.
        seconds: The most seconds, of processor time and of the clock.
        extra_bytes: The most memory beyond what this process has.

    Raises:
        TooMuchError: a limit was passed.
        FailedError: `work` raised.
    """
    if not IS_BOUNDED:
        return _here(work)
    [outcome] = run_bounded_each([work], seconds=seconds, extra_bytes=extra_bytes)
    if isinstance(outcome, TooMuchError | FailedError):
        raise outcome
    return outcome


def run_bounded_each(
    works: Sequence[Callable[[], Any]], *, seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES
) -> Iterator[Any]:
    """The result of each of `works` as `run_bounded` computes it, or its error, at the price of one fork.

    The time is for each of them, the memory for all. One that passes a limit ends the child; the next goes on with
    those after it.

    Yields:
        For each, in order: its result, a `TooMuchError` or a `FailedError`.
    """
    if not IS_BOUNDED:
        yield from map(_outcome_here, works)
        return
    done = 0
    while done < len(works):
        for outcome in _in_one_child(works[done:], seconds=seconds, extra_bytes=extra_bytes):
            yield outcome
            done += 1


class BoundedChild:
    """One kind of work again and again, in a child that lives on: to fork for each takes tens of milliseconds.

    Its state: the child, and how much it has done. Calls from several threads wait for each other.

    Args:
        work: What to do with an argument that is JSON, for a result that is JSON. It must not compute with torch.
        seconds: The most seconds for one call, of processor time and of the clock.
        extra_bytes: The most memory beyond what this process has when the child is made.
        most: After so many calls the child is made anew, so that nothing piles up in it.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        *,
        seconds: float = SECONDS,
        extra_bytes: int = EXTRA_BYTES,
        most: int = 10_000,
    ) -> None:
        self._work, self._seconds, self._extra_bytes, self._most = work, seconds, extra_bytes, most
        self._lock = threading.Lock()
        self._child: tuple[int, int, _Lines, int] | None = None  # its id, where it reads, what it writes, and that file
        self._done = 0

    def start(self) -> None:
        """Make the child now rather than for the first call."""
        with self._lock:
            if IS_BOUNDED and self._child is None:
                self._start()

    def __call__(self, argument: Any) -> Any:
        """The result of `work`.

        Raises:
            TooMuchError: a limit was passed.
            FailedError: `work` raised.
        """
        if not IS_BOUNDED:
            return _here(lambda: self._work(argument))
        with self._lock:
            line = self._answered(json.dumps(argument).encode() + b"\n")
            if line is None:
                self._stop()
                raise TooMuchError
            outcome = _outcome(json.loads(line))
        if isinstance(outcome, TooMuchError | FailedError):
            raise outcome
        return outcome

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _answered(self, data: bytes) -> bytes | None:
        """The line that the child answers with, or None when it does not; one that somebody ended is made anew."""
        if self._done >= self._most:
            self._stop()
        for _ in range(2):
            _, writing, lines, _ = self._child or self._start()
            self._done += 1
            try:
                _write(writing, data)
            except BrokenPipeError:
                self._stop()
                continue
            return lines.next(until=time.monotonic() + self._seconds)
        return None

    def _start(self) -> "tuple[int, int, _Lines, int]":
        (its_reading, writing), (reading, its_writing) = os.pipe(), os.pipe()
        child = _fork()
        if child == 0:
            self._live(its_reading, its_writing)
        os.close(its_reading)
        os.close(its_writing)
        self._child, self._done = (child, writing, _Lines(reading), reading), 0
        return self._child

    def _live(self, reading: int, writing: int) -> None:
        """The child's whole life: it never returns, and ends when nobody writes to it any more."""
        try:
            _confine(reading, writing, extra_bytes=self._extra_bytes)
            with os.fdopen(reading, "rb") as lines:
                for line in lines:
                    if not _do(partial(self._work, json.loads(line)), writing, seconds=self._seconds):
                        break
        finally:
            os._exit(0)

    def _stop(self) -> None:
        if self._child is not None:
            child, writing, _, reading = self._child
            self._child = None
            os.close(writing)
            os.close(reading)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of forking with threads; the child computes and writes, and takes no lock of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _in_one_child(works: Sequence[Callable[[], Any]], *, seconds: float, extra_bytes: int) -> Iterator[Any]:
    """What one child gets done, and the error of the work that ended it, if one did."""
    reading, writing = os.pipe()
    child = _fork()
    if child == 0:
        _in_child(works, writing, seconds=seconds, extra_bytes=extra_bytes)
    os.close(writing)
    try:
        lines = _Lines(reading)
        for _ in works:
            line = lines.next(until=time.monotonic() + seconds)
            if line is None:
                yield TooMuchError()
                return
            yield _outcome(json.loads(line))
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _outcome(document: dict[str, Any]) -> Any:
    if "failed" not in document:
        return document["result"]
    kind, message = document["failed"]
    return TooMuchError() if kind == "MemoryError" else FailedError(kind, message)


def _outcome_here(work: Callable[[], Any]) -> Any:
    try:
        return _here(work)
    except FailedError as error:
        return error


def _here(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        raise FailedError(type(error).__name__, str(error)) from error


def _in_child(works: Sequence[Callable[[], Any]], writing: int, *, seconds: float, extra_bytes: int) -> None:
    """The child's whole life: it never returns."""
    try:
        _confine(writing, extra_bytes=extra_bytes)
        for work in works:
            if not _do(work, writing, seconds=seconds):
                break
    finally:
        os._exit(0)


def _confine(*kept: int, extra_bytes: int) -> None:
    """From now on this process has limits, and of the files that were open only those in `kept`."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # a lock that the parent holds on a file must not outlive it here
    for before, after in itertools.pairwise((2, *sorted(kept), os.sysconf("SC_OPEN_MAX"))):
        os.closerange(before + 1, after)
    pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])  # noqa: PTH123, SIM115
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _do(work: Callable[[], Any], writing: int, *, seconds: float) -> bool:
    """Write the outcome of `work` as a line; False if it is too large."""
    _limit_processor_time(seconds)
    try:
        data = json.dumps({"result": work()}).encode()
    except BaseException as error:  # noqa: BLE001 (everything goes to the parent)
        data = json.dumps({"failed": [type(error).__name__, str(error)[:2000]]}).encode()
    if len(data) > RESULT_LIMIT_BYTES:
        return False
    _write(writing, data + b"\n")
    return True


def _write(writing: int, data: bytes) -> None:
    while data:
        data = data[os.write(writing, data) :]


def _limit_processor_time(seconds: float) -> None:
    """From now on this process may compute for so long; the system ends it then."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


class _Lines:
    """The lines that arrive through a pipe. Its state: what has been read of the next ones."""

    def __init__(self, reading: int) -> None:
        self._reading = reading
        self._begun: list[bytes] = []
        self._whole: list[bytes] = []

    def next(self, *, until: float) -> bytes | None:
        """The next line; None when it is too late or the pipe has ended."""
        while not self._whole:
            ready, _, _ = select.select([self._reading], [], [], max(until - time.monotonic(), 0))
            part = os.read(self._reading, 1 << 20) if ready else b""
            if not part:
                return None
            *ended, rest = part.split(b"\n")
            if ended:
                first = b"".join([*self._begun, ended[0]])
                self._whole, self._begun = [first, *ended[1:]], []
            self._begun.append(rest)
        return self._whole.pop(0)
