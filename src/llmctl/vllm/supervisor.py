"""Runs a command so that nothing of it outlives whoever started this: `python -I -S supervisor.py GRACE command…`.

Standard input is a pipe from the parent: when it closes, the parent is gone, even by SIGKILL. SIGTERM and SIGINT are
passed on as SIGTERM; what still runs GRACE seconds later is killed. However the command ends, what it started ends with
it: vLLM's EngineCore and workers outlive a server that was killed (seen with 0.32). Uses the standard library alone.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1


def main(grace_seconds: float, command: list[str]) -> int:
    """Run the command to its end. Returns its exit code, or 128 + the signal that ended it."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    own = os.getpid()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _die_with(own),  # there is one thread
    )
    watched, deadline = [0, woken], None
    while not _has_ended(process):
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        readable, _, _ = select.select(watched, [], [], left)
        end = False
        if 0 in readable and not os.read(0, 512):
            watched, end = [woken], True
        if woken in readable:
            end |= bool(set(os.read(woken, 512)) - {signal.SIGCHLD})
        if end and deadline is None:
            process.terminate()
            deadline = time.monotonic() + grace_seconds
        elif deadline is not None and (end or time.monotonic() >= deadline):
            break
    _kill_all(process)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _die_with(parent: int) -> None:
    """On Linux: be killed when the supervisor is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether the command has ended. It is not reaped: until then nothing else gets its number."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    """End the whole session of the command."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
