"""Bounded execution of work on untrusted data, such as a model's chat template or the decoding of a picture.

The Jinja sandbox keeps a chat template from reaching Python, but not from looping for hours or building a string of
gigabytes, and neither can be interrupted from inside the process. A picture's decoder is compiled code, which may also
crash. So the work runs in a forked child that the system ends when it exceeds a limit of time or memory.

The child writes a line of JSON for each outcome: `{"failed": [kind, message]}` or `{"result": ..., "bytes": n}`, where
the second is followed by n bytes if the work returned a `Binary`.

Outside Linux, forking a process that has loaded torch is not safe, and the work cannot be sent to a fresh process: it
is a closure over a tokenizer. There it runs in a thread with only a time limit. A template runs as Python code, which
is interrupted at that limit; compiled code would continue in the background. Memory is not limited.
"""

import ctypes
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmctl.platform_support import (
    CAN_FORK_SAFELY,
    close_files_except,
    confine_process,
    exit_now,
    fork,
    kill_forked,
    limit_processor_time,
    wait_readable,
)

SECONDS = 10
EXTRA_BYTES = 1_000_000_000
RESULT_LIMIT_BYTES = 100_000_000
_READ_BYTES = 1 << 20


class LimitExceededError(Exception):
    """The work exceeded a limit of time or memory, or its result is too large."""


class FailedError(Exception):
    """The work raised an exception. `kind` is the name of the exception's class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message or kind)
        self.kind = kind


@dataclass(frozen=True)
class Binary:
    """A result of two parts: `value`, which is JSON, and `data`, which reaches the caller as bytes."""

    value: Any
    data: bytes = field(repr=False)


def run_bounded(work: Callable[[], Any], *, seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> Any:
    """Run `work`, which returns JSON or a `Binary` and must not compute with torch, within limits; return its result.

    Args:
        work: The function to run.
        seconds: Limit of processor time and of the clock.
        extra_bytes: Limit of memory beyond what this process has.

    Raises:
        LimitExceededError: a limit was exceeded.
        FailedError: `work` raised.
    """
    [outcome] = run_bounded_each([work], seconds=seconds, extra_bytes=extra_bytes)
    if isinstance(outcome, LimitExceededError | FailedError):
        raise outcome
    return outcome


def run_bounded_each(
    works: Sequence[Callable[[], Any]],
    *,
    seconds: float = SECONDS,
    extra_bytes: int = EXTRA_BYTES,
    result_bytes: int = RESULT_LIMIT_BYTES,
) -> Iterator[Any]:
    """Run each of `works` as `run_bounded` does, with a single fork.

    The time limit is for each of them, the memory limit for all together. Work that exceeds a limit ends the child; a
    new child continues with the next.

    Args:
        works: The functions to run.
        seconds: Limit for each of them, of processor time and of the clock.
        extra_bytes: Limit of memory beyond what this process has.
        result_bytes: Limit of each result, and of the data of each `Binary`.

    Yields:
        For each work, in order: its result, a `LimitExceededError` or a `FailedError`.
    """
    if not CAN_FORK_SAFELY:
        yield from (_run_in_thread(work, seconds=seconds) for work in works)
        return
    limits = _Limits(seconds, extra_bytes, result_bytes)
    done = 0
    while done < len(works):
        for outcome in _run_in_one_child(works[done:], limits):
            yield outcome
            done += 1


@dataclass(frozen=True)
class _Limits:
    """The limits of a child: time for each work, memory for all together, and the size of each result."""

    seconds: float
    extra_bytes: int
    result_bytes: int = RESULT_LIMIT_BYTES


class BoundedChild:
    """A child process that does one kind of work again and again; forking for each call takes tens of milliseconds.

    Calls from several threads wait for each other. The state is the child and the number of calls it has served.

    Args:
        work: Function of a JSON argument that returns JSON or a `Binary`. It must not compute with torch.
        seconds: Limit for one call, of processor time and of the clock.
        extra_bytes: Limit of memory beyond what this process has when the child starts.
        calls_per_child: Calls after which the child is replaced, so that its memory does not grow without limit.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        *,
        seconds: float = SECONDS,
        extra_bytes: int = EXTRA_BYTES,
        calls_per_child: int = 10_000,
    ) -> None:
        self._work, self._limits = work, _Limits(seconds, extra_bytes)
        self._calls_per_child = calls_per_child
        self._lock = threading.Lock()
        self._child: _RunningChild | None = None
        self._calls = 0

    def start(self) -> None:
        """Start the child now rather than at the first call."""
        with self._lock:
            if CAN_FORK_SAFELY and self._child is None:
                self._start()

    def __call__(self, argument: Any) -> Any:
        """Return the result of `work`.

        Raises:
            LimitExceededError: a limit was exceeded.
            FailedError: `work` raised.
        """
        with self._lock:
            if CAN_FORK_SAFELY:
                outcome = self._call_child(argument)
            else:
                outcome = _run_in_thread(partial(self._work, argument), seconds=self._limits.seconds)
        if isinstance(outcome, LimitExceededError | FailedError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Stop the child."""
        with self._lock:
            self._stop()

    def _call_child(self, argument: Any) -> Any:
        """Return the outcome of one call. A child that was ended from outside is replaced once."""
        if self._calls >= self._calls_per_child:
            self._stop()
        data = json.dumps(argument).encode() + b"\n"
        for _ in range(2):
            child = self._child or self._start()
            self._calls += 1
            try:
                _write(child.input, data)
            except BrokenPipeError:
                self._stop()
                continue
            outcome = _read_outcome(child.results, self._limits)
            if outcome is not None:
                return outcome
            break
        self._stop()
        return LimitExceededError()

    def _start(self) -> "_RunningChild":
        (child_input, our_output), (our_input, child_output) = os.pipe(), os.pipe()
        pid = fork()
        if pid == 0:
            self._serve(child_input, child_output)
        os.close(child_input)
        os.close(child_output)
        self._child, self._calls = _RunningChild(pid, our_output, our_input), 0
        return self._child

    def _serve(self, read_fd: int, write_fd: int) -> None:
        """Serve calls in the child until the parent closes the pipe. Never returns."""
        try:
            _confine(read_fd, write_fd, extra_bytes=self._limits.extra_bytes)
            with os.fdopen(read_fd, "rb") as lines:
                for line in lines:
                    if not _write_outcome(partial(self._work, json.loads(line)), write_fd, self._limits):
                        break
        finally:
            exit_now(0)

    def _stop(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            os.close(child.input)
            os.close(child.output)
            kill_forked(child.pid)


class _RunningChild:
    """A running child: its process id, and the parent's ends of its pipes."""

    def __init__(self, pid: int, input_: int, output: int) -> None:
        self.pid, self.input, self.output = pid, input_, output
        self.results = _Results(output)


def _run_in_one_child(works: Sequence[Callable[[], Any]], limits: _Limits) -> Iterator[Any]:
    """Yield the outcomes of one child: of all works, or up to the one that exceeded a limit."""
    read_fd, write_fd = os.pipe()
    child = fork()
    if child == 0:
        _run_all(works, write_fd, limits)
    os.close(write_fd)
    try:
        results = _Results(read_fd)
        for _ in works:
            outcome = _read_outcome(results, limits)
            if outcome is None:
                yield LimitExceededError()
                return
            yield outcome
    finally:
        os.close(read_fd)
        kill_forked(child)


class _OutOfTime(BaseException):
    """The limit of time of a thread has passed."""


def _run_in_thread(work: Callable[[], Any], *, seconds: float) -> Any:
    """Return the outcome of `work`, run in a thread that is interrupted at the time limit."""
    outcomes: list[Any] = []

    def run() -> None:
        try:
            outcomes.append(work())
        except _OutOfTime:
            return
        except MemoryError:
            outcomes.append(LimitExceededError())
        except Exception as error:  # noqa: BLE001 (it goes to the caller)
            outcomes.append(FailedError(type(error).__name__, str(error)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcomes:
        # it is raised at the thread's next bytecode
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_OutOfTime))
        return LimitExceededError()
    return outcomes[0]


def _run_all(works: Sequence[Callable[[], Any]], write_fd: int, limits: _Limits) -> None:
    """Do all works in the child. Never returns."""
    try:
        _confine(write_fd, extra_bytes=limits.extra_bytes)
        for work in works:
            if not _write_outcome(work, write_fd, limits):
                break
    finally:
        exit_now(0)


def _confine(*kept: int, extra_bytes: int) -> None:
    """Limit this process, and close all files except `kept`: it must not keep a lock after the parent has ended.

    Its messages, such as those that libtiff prints about damaged files, do not reach the terminal.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    close_files_except(kept)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    if nowhere > 2:
        os.close(nowhere)
    confine_process(extra_memory_bytes=extra_bytes)


def _write_outcome(work: Callable[[], Any], write_fd: int, limits: _Limits) -> bool:
    """Write the outcome of `work`; return False if it is too large."""
    limit_processor_time(limits.seconds)
    data = b""
    try:
        result = work()
        if isinstance(result, Binary):
            data = result.data
            document = {"result": result.value, "bytes": len(data)}
        else:
            document = {"result": result}
        line = json.dumps(document).encode()
    except BaseException as error:  # noqa: BLE001 (everything goes to the parent)
        line, data = json.dumps({"failed": [type(error).__name__, str(error)[:2000]]}).encode(), b""
    if max(len(line), len(data)) > limits.result_bytes:
        return False
    _write(write_fd, line + b"\n")
    _write(write_fd, data)
    return True


def _write(write_fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(write_fd, rest) :]


def _read_outcome(results: "_Results", limits: _Limits) -> Any:
    """Return the next outcome of a child; None if it exceeded a limit or ended."""
    until = time.monotonic() + limits.seconds
    line = results.line(until=until, limit=limits.result_bytes)
    if line is None:
        return None
    document = json.loads(line)
    if "failed" in document:
        kind, message = document["failed"]
        return LimitExceededError() if kind == "MemoryError" else FailedError(kind, message)
    if "bytes" not in document:
        return document["result"]
    if document["bytes"] > limits.result_bytes:
        return None
    data = results.data(document["bytes"], until=until)
    return None if data is None else Binary(document["result"], data)


class _Results:
    """The outcomes in a child's pipe. Its state is the part of the next outcome that was read already."""

    def __init__(self, read_fd: int) -> None:
        self._read_fd = read_fd
        self._ahead = b""

    def line(self, *, until: float, limit: int) -> bytes | None:
        """Return the next line; None when the time is over, the line is longer than `limit`, or the pipe has ended."""
        parts, size = [self._ahead], len(self._ahead)
        while b"\n" not in parts[-1]:
            part = self._read(_READ_BYTES, until)
            size += len(part)
            if not part or size > limit + _READ_BYTES:
                return None
            parts.append(part)
        line, _, self._ahead = b"".join(parts).partition(b"\n")
        return line

    def data(self, size: int, *, until: float) -> bytes | None:
        """Return the next `size` bytes; None when the time is over or the pipe has ended."""
        data = io.BytesIO()  # unlike a bytearray, it gives its bytes away without a copy
        data.write(self._ahead[:size])
        self._ahead = self._ahead[size:]
        while data.tell() < size:
            part = self._read(min(_READ_BYTES, size - data.tell()), until)
            if not part:
                return None
            data.write(part)
        return data.getvalue()

    def _read(self, size: int, until: float) -> bytes:
        """Return up to `size` bytes; none when the time is over or the pipe has ended."""
        return os.read(self._read_fd, size) if wait_readable(self._read_fd, until - time.monotonic()) else b""
