"""One child process at a time: started, listened to, and ended whatever happens here."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import IO, Any

from llmctl.errors import LlmctlError, MachineError, ModelError, RemoteError, UserError

_KINDS: dict[str, type[LlmctlError]] = {
    kind.kind: kind for kind in (UserError, ModelError, MachineError, RemoteError)
}  # fmt: skip
_TALK_BYTES = 4000
Said = Generator[Mapping[str, Any], None, None]


def ask(question: str, **job: Any) -> Said:
    """Ask a fresh process, and yield what it says as it says it. Closing the iterator ends the process.

    Raises:
        LlmctlError: the child's own error, or that it died.
    """
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llmctl.bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=talk,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone, which then ends the child
        )
        try:
            yield from _listen(process, {"question": question, **job}, talk)
        finally:
            _end(process)


def _listen(process: "subprocess.Popen[bytes]", job: Mapping[str, Any], talk: IO[bytes]) -> Said:
    assert process.stdin is not None  # noqa: S101 (both are pipes)
    assert process.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError):  # it died at once: its end is told below
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    for line in process.stdout:
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:  # cut short by a crash
            break
        if said.get("done"):
            return
        if failed := said.get("failed"):
            raise _KINDS.get(failed["kind"], UserError)(failed["message"], hint=failed["hint"])
        yield said
    raise _died(process.wait(), talk)


def _died(code: int, talk: IO[bytes]) -> LlmctlError:
    """How a process ended that did not say so itself."""
    talk.seek(max(0, talk.seek(0, os.SEEK_END) - _TALK_BYTES))
    said = talk.read().decode("utf-8", errors="replace").strip()
    last = (said.splitlines() or ["it said nothing"])[-1][:300]
    if code == -signal.SIGKILL:
        return MachineError("the system killed the process: memory ran out, most likely", details={"talk": said})
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return MachineError(f"the process ended with {how}: {last}", details={"talk": said})


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started, and wait until it is gone."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
