"""The lock that allows one writer for each model in the cache.

It is an advisory lock of the system (`platform_support.try_lock`), which ends with its holder however that ends. It
saves work; the content is protected by its hashes.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from llmctl.errors import MachineError
from llmctl.hub import settings
from llmctl.platform_support import try_lock

_POLL_SECONDS = 0.2
_FIRST_NOTE_SECONDS = 1.0
_NEXT_NOTE_SECONDS = 60.0


def lock_path(repo_id: str) -> Path:
    """Return the path of a model's lock, where huggingface_hub keeps its own locks."""
    return settings.cache_dir() / ".locks" / settings.repo_dir(repo_id).name / "llmctl.lock"


@contextmanager
def locked(repo_id: str, *, timeout_seconds: float | None, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a model. A wait is reported to `note`, with the process that holds the lock.

    Raises:
        MachineError: it was not free within `timeout_seconds`.
    """
    path = lock_path(repo_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _acquire(file, repo_id, timeout_seconds, note)
        file.seek(0)
        file.truncate()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def _acquire(file: IO[str], repo_id: str, timeout_seconds: float | None, note: Callable[[str], None]) -> None:
    began = time.monotonic()
    next_note = _FIRST_NOTE_SECONDS
    while not try_lock(file):
        waited = time.monotonic() - began
        if timeout_seconds is not None and waited >= timeout_seconds:
            raise MachineError(
                f"{_holder(file)} is downloading {repo_id}, and --lock-timeout of {timeout_seconds:g} s has passed",
                hint="wait for it, or end that process if it hangs; then run the same command again",
            )
        if waited >= min(next_note, timeout_seconds if timeout_seconds is not None else next_note):
            note(f"waiting for {_holder(file)}, which is downloading {repo_id}")
            next_note = waited + _NEXT_NOTE_SECONDS
        time.sleep(_POLL_SECONDS)


def _holder(file: IO[str]) -> str:
    """Return a description of the process that holds the lock, from the lock file."""
    try:
        file.seek(0)
        known = json.loads(file.read())
        since = datetime.fromisoformat(known["since"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        here = "" if known["host"] == socket.gethostname() else f" on {known['host']}"
        return f"process {known['pid']}{here}, since {since}"
    except (ValueError, KeyError, TypeError):
        return "another process"
