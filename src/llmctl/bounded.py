"""Work that comes from a model's repository, done where it can be stopped: in a forked child with limits.

The Jinja sandbox keeps a chat template from reaching Python, but not from looping for hours or building a string of
gigabytes, and neither can be interrupted from inside the process. So the template runs in a child that the system ends.
"""

import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

SECONDS = 10
EXTRA_BYTES = 1_000_000_000
RESULT_LIMIT_BYTES = 100_000_000


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
    if sys.platform != "linux":
        return _here(work)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forking with threads; the child computes and writes, and takes no lock of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _in_child(work, writing, seconds=seconds, extra_bytes=extra_bytes)
    os.close(writing)
    try:
        answer = _read(reading, until=time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not answer:
        raise TooMuchError
    outcome = json.loads(answer)
    if "failed" in outcome:
        kind, message = outcome["failed"]
        if kind == "MemoryError":
            raise TooMuchError
        raise FailedError(kind, message)
    return outcome["result"]


def _here(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        raise FailedError(type(error).__name__, str(error)) from error


def _in_child(work: Callable[[], Any], writing: int, *, seconds: float, extra_bytes: int) -> None:
    """The child's whole life: it never returns."""
    try:
        import resource

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])  # noqa: PTH123, SIM115
        limit = pages * os.sysconf("SC_PAGE_SIZE") + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            outcome = {"result": work()}
        except BaseException as error:  # noqa: BLE001 (everything goes to the parent)
            outcome = {"failed": [type(error).__name__, str(error)[:2000]]}
        data = json.dumps(outcome).encode()
        if len(data) <= RESULT_LIMIT_BYTES:
            while data:
                data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def _read(reading: int, *, until: float) -> bytes:
    """What the child writes until it closes the pipe; nothing when it is too late."""
    parts: list[bytes] = []
    while True:
        left = until - time.monotonic()
        ready, _, _ = select.select([reading], [], [], max(left, 0))
        if not ready:
            return b""
        part = os.read(reading, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
