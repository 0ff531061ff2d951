"""The parent side of a benchmark's child processes, which run one at a time."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import IO, Any

from llmctl.errors import LlmctlError, MachineError, ModelError, RemoteError, UserError
from llmctl.machine.child_process import end_child, exit_text, json_lines, start_child
from llmctl.platform_support import was_killed

_ERRORS: dict[str, type[LlmctlError]] = {
    error.kind: error for error in (UserError, ModelError, MachineError, RemoteError)
}  # fmt: skip
_LOG_TAIL_BYTES = 4000
Messages = Generator[Mapping[str, Any], None, None]


def ask(question: str, **job: Any) -> Messages:
    """Give a job to a fresh process, and yield its messages as they arrive. Closing the iterator ends the process.

    Raises:
        LlmctlError: the error that the child reported, or that the child died.
    """
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-P", "-m", "llmctl.bench.child"]
        process = start_child(command, stdin=subprocess.PIPE, stderr=log)
        try:
            yield from _messages(process, {"question": question, **job}, log)
        finally:
            end_child(process)


def _messages(process: "subprocess.Popen[bytes]", job: Mapping[str, Any], log: IO[bytes]) -> Messages:
    assert process.stdin is not None  # noqa: S101 (both are pipes)
    assert process.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError):  # the child died at once: the error below gives the reason
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    for message in json_lines(process.stdout):
        if message.get("done"):
            return
        if failed := message.get("failed"):
            raise _ERRORS.get(failed["kind"], UserError)(failed["message"], hint=failed["hint"])
        yield message
    raise _death(process.wait(), log)


def _death(code: int, log: IO[bytes]) -> LlmctlError:
    """Return the error for a process that ended before it reported a result."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
    log_tail = log.read().decode("utf-8", errors="replace").strip()
    if was_killed(code):
        return MachineError("the system killed the process; most likely memory ran out", details={"talk": log_tail})
    last_line = (log_tail.splitlines() or ["it printed nothing"])[-1][:300]
    return MachineError(f"the process ended with {exit_text(code)}: {last_line}", details={"talk": log_tail})
