"""Child processes: started side by side, bounded in time, and stopped with everything they started."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.doctor.findings import Trial

CHILD = Path(__file__).with_name("child.py")
_TALK_CHARACTERS = 2000


@dataclass(frozen=True)
class Question:
    """What a child process is asked.

    Attributes:
        name: The import name of a package, or `hub`.
        limit_seconds: How long it may take.
        asked: Values that go with it. They show in the list of processes: never a secret.
        environment: Variables over the ones of this process.
    """

    name: str
    limit_seconds: float
    asked: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came back: the facts that were said, and how the process ended."""

    said: Mapping[str, Any]
    trial: Trial


class _Group:
    """The processes that run now. It changes: an interrupt has to end every one of them, and let no other begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a process in a session of its own, so that it can be ended with what it starts."""
        with self._lock:
            if self._ended:
                raise InterruptedError("no process is started any more")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def forget(self, process: "subprocess.Popen[bytes]") -> None:
        """A process has ended."""
        with self._lock:
            self._running.discard(process)

    def end(self) -> None:
        """End what runs, and let nothing else begin."""
        with self._lock:
            self._ended = True
            for process in self._running:
                _kill(process)


def ask_all(questions: Sequence[Question], *, at_once: int | None = None) -> dict[str, Answer]:
    """Ask every question in a process of its own, in this order, and return the answers by name."""
    group = _Group()
    with ThreadPoolExecutor(max_workers=at_once or max(4, min(os.cpu_count() or 4, 8))) as pool:
        try:
            return dict(zip((q.name for q in questions), pool.map(lambda q: _ask(q, group), questions), strict=True))
        except BaseException:
            group.end()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ask(question: Question, group: _Group) -> Answer:
    began, limit = time.monotonic(), question.limit_seconds
    asked = json.dumps(dict(question.asked))
    process = group.start([sys.executable, "-P", str(CHILD), question.name, asked, str(limit)], question.environment)
    hung = False
    try:
        out, talk = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        hung = True
        _kill(process)
        out, talk = process.communicate()
    group.forget(process)
    said, text = _said(out), talk.decode("utf-8", errors="replace")[-_TALK_CHARACTERS:].strip()
    seconds = time.monotonic() - began
    return Answer(said, _trial(said, process.returncode, hung=hung, talk=text, seconds=seconds, question=question))


def _said(out: bytes) -> dict[str, Any]:
    """All the lines as one object; a line cut short by a crash is left out."""
    said: dict[str, Any] = {}
    for line in out.decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            said |= json.loads(line)
    return said


def _trial(said: Mapping[str, Any], code: int, *, hung: bool, talk: str, seconds: float, question: Question) -> Trial:
    facts = said.get("facts") or {}
    if said.get("failed"):
        return Trial("failed", facts, talk=talk, seconds=seconds, **said["failed"])
    if said.get("done"):
        return Trial("imported", facts, talk=talk, seconds=seconds)
    if hung:
        return Trial("hung", facts, f"no end after {question.limit_seconds:g} s", talk=talk, seconds=seconds)
    return Trial("crashed", facts, _death(code), talk=talk, seconds=seconds)


def _death(code: int) -> str:
    """How a process died, in words: the name of the signal, or its exit code."""
    with suppress(ValueError):
        if code < 0:
            return signal.Signals(-code).name
    return f"exit code {code}"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started."""
    if os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
