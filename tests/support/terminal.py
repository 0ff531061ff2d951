"""`llmctl` in a pseudo-terminal."""

import fcntl
import os
import pty
import signal
import struct
import termios
import time
from collections.abc import Mapping
from pathlib import Path

from pexpect import fdpexpect

from support import forkserver


class Terminal(fdpexpect.fdspawn):  # type: ignore[misc]
    """`llmctl ARGUMENTS` in a terminal of its own, driven as `pexpect.spawn` is."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        columns: int = 80,
        rows: int = 24,
        timeout: float = 120,
    ) -> None:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color"} if env is None else env
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = forkserver.start(
            *arguments, env=env, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, terminal=True
        )
        os.close(theirs)
        super().__init__(ours, timeout=timeout, encoding="utf-8")
        self.pid = self.process.pid

    def send(self, text: str) -> int:
        """Type something, after the pause of `pexpect.spawn`: a program may just be switching the terminal's mode."""
        time.sleep(0.05)
        return int(super().send(text))

    def sendcontrol(self, letter: str) -> None:
        """Type Ctrl and a letter."""
        self.send(chr(ord(letter) & 0x1F))

    def sendintr(self) -> None:
        """Type Ctrl-C."""
        self.sendcontrol("c")

    def sendeof(self) -> None:
        """Type Ctrl-D."""
        self.sendcontrol("d")

    def isalive(self) -> bool:
        return self.process.poll() is None

    def close(self, force: bool = False) -> None:
        """Wait for the end, or bring it about, and note the exit code."""
        if self.closed:
            return
        if force:
            self.process.kill()
        super().close()  # the process gets SIGHUP
        code = self.process.wait(60)
        self.exitstatus, self.signalstatus = (code, None) if code >= 0 else (None, signal.Signals(-code))
