"""Child processes that write JSON lines. Each has its own process group and is killed with everything it started."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from llmctl.platform_support import kill_group, new_group

WriteJson = Callable[..., None]
Stream = int | IO[bytes]


def start_child(
    command: Sequence[str],
    *,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a process; `environment` overrides variables of this process.

    Ctrl-C in a terminal reaches only this process, which then ends the child.
    """
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        **new_group(),
    )


def end_child(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and everything it started, wait until it is gone, and close its pipes."""
    kill_group(process)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def json_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line. Other lines, such as one that a crash has truncated, are skipped."""
    for line in lines:
        with suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict):
                yield document


def exit_text(code: int) -> str:
    """Return the name of the signal that ended a process, or `exit code N`."""
    with suppress(ValueError):
        if code < 0:
            return signal.Signals(-code).name
    return f"exit code {code}"


def take_over_stdout() -> WriteJson:
    """Return a function that writes its keywords as a line of JSON to stdout. All other output goes to stderr."""
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write_json(**facts: Any) -> None:
        stdout.write(json.dumps(facts) + "\n")
        stdout.flush()

    return write_json
