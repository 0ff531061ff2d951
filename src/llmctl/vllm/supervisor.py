"""Run a command so that none of its processes outlives the parent: `python -I -S supervisor.py GRACE command…`.

Standard input is a pipe from the parent. It closes when the parent ends, even by SIGKILL. SIGTERM and SIGINT are passed
on as SIGTERM; processes that still run GRACE seconds later are killed. When the command ends for any reason, its
children are killed, because vLLM's EngineCore and workers outlive a killed server (seen with 0.32). This file uses only
the standard library.
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
    """Run the command until it ends. Return its exit code, or 128 + the number of the signal that ended it."""
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    supervisor = os.getpid()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _die_with(supervisor),  # safe: there is one thread
    )
    watched, deadline = [0, signals], None
    while not _has_ended(process):
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        readable, _, _ = select.select(watched, [], [], timeout)
        stop = False
        if 0 in readable and not os.read(0, 512):
            watched, stop = [signals], True
        if signals in readable:
            stop |= bool(set(os.read(signals, 512)) - {signal.SIGCHLD})
        if stop and deadline is None:
            process.terminate()
            deadline = time.monotonic() + grace_seconds
        elif deadline is not None and (stop or time.monotonic() >= deadline):
            break
    _kill_all(process)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _die_with(parent: int) -> None:
    """Let Linux kill this process when the supervisor dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Return True if the command has ended. It is not reaped, so its process id cannot be reused."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    """Kill the whole session of the command."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
