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


def ask_all(questions: Sequence[Question], *, at_once: int | None = None) -> dict[str, Answer]:
    """Ask every question in a process of its own, in this order, and return the answers by name."""
    running: set[subprocess.Popen[bytes]] = set()
    lock = threading.Lock()

    def one(question: Question) -> Answer:
        return _ask(question, running, lock)

    pool = ThreadPoolExecutor(max_workers=at_once or max(4, min(os.cpu_count() or 4, 8)))
    try:
        return dict(zip((q.name for q in questions), pool.map(one, questions), strict=True))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        with lock:
            for process in running:
                _kill(process)
        raise
    finally:
        pool.shutdown(wait=True)


def _ask(question: Question, running: "set[subprocess.Popen[bytes]]", lock: threading.Lock) -> Answer:
    began, limit = time.monotonic(), question.limit_seconds
    with lock:
        process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), question.name, json.dumps(dict(question.asked)), str(limit)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **question.environment},
            start_new_session=True,
        )
        running.add(process)
    hung = False
    try:
        out, talk = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        hung = True
        _kill(process)
        out, talk = process.communicate()
    with lock:
        running.discard(process)
    said = _said(out)
    seconds = time.monotonic() - began
    text = talk.decode("utf-8", errors="replace")[-_TALK_CHARACTERS:].strip()
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
