"""The child processes of `llmctl doctor`, which run in parallel with a time limit and are ended with their children."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.doctor.findings import Trial
from llmctl.machine.child_process import exit_text, json_lines, start_child
from llmctl.platform_support import kill_group

CHILD = Path(__file__).with_name("child.py")
_LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class Question:
    """A question for a child process.

    Attributes:
        name: Import name of a package, or `hub`.
        limit_seconds: Time limit.
        arguments: Arguments of the question. They are visible in the process list, so they must not contain secrets.
        environment: Environment variables to add.
    """

    name: str
    limit_seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The answer of a child process: the reported facts and the outcome."""

    facts: Mapping[str, Any]
    trial: Trial


class _Group:
    """The running processes. After an interrupt, all are killed and no other starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a process, unless the group has been ended."""
        with self._lock:
            if self._ended:
                raise InterruptedError("the processes are being ended")
            process = start_child(command, environment={"PYTHONFAULTHANDLER": "1", **environment})
            self._running.add(process)
        return process

    def forget(self, process: "subprocess.Popen[bytes]") -> None:
        """Remove a process that has ended."""
        with self._lock:
            self._running.discard(process)

    def end(self) -> None:
        """Kill all processes, and prevent any other from starting."""
        with self._lock:
            self._ended = True
            for process in self._running:
                kill_group(process)


def ask_all(questions: Sequence[Question], *, at_once: int | None = None) -> dict[str, Answer]:
    """Ask each question in a separate process, and return the answers by the name of the question."""
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
    arguments = json.dumps(dict(question.arguments))
    process = group.start(
        [sys.executable, "-P", str(CHILD), question.name, arguments, str(limit)], question.environment
    )
    hung = False
    try:
        out, talk = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        hung = True
        kill_group(process)
        out, talk = process.communicate()
    group.forget(process)
    facts, text = _facts(out), talk.decode("utf-8", errors="replace")[-_LOG_TAIL_CHARACTERS:].strip()
    seconds = time.monotonic() - began
    return Answer(facts, _trial(facts, process.returncode, hung=hung, talk=text, seconds=seconds, question=question))


def _facts(out: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in json_lines(out.splitlines()):
        facts |= line
    return facts


def _trial(answer: Mapping[str, Any], code: int, *, hung: bool, talk: str, seconds: float, question: Question) -> Trial:
    facts = answer.get("facts") or {}
    if answer.get("failed"):
        return Trial("failed", facts, talk=talk, seconds=seconds, **answer["failed"])
    if answer.get("done"):
        return Trial("imported", facts, talk=talk, seconds=seconds)
    if hung:
        return Trial("hung", facts, f"no result after {question.limit_seconds:g} s", talk=talk, seconds=seconds)
    return Trial("crashed", facts, exit_text(code), talk=talk, seconds=seconds)
