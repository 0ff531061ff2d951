"""vLLM's server as a child: started, waited for until it answers, ended whatever happens here."""

import http.client
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from llmctl.errors import LlmctlError, MachineError
from llmctl.machine.child_process import start_child
from llmctl.paths import log_dir
from llmctl.platform_support import open_descriptor
from llmctl.server.listen_address import bind, port_of, url
from llmctl.vllm.failures import explain, last_lines, newest_message

GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.2
_END_SHOWS_SECONDS = 10.0
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 (what is asked, not what is done)


@dataclass(frozen=True)
class Start:
    """What is started.

    Attributes:
        command: vLLM's server with its arguments.
        environment: Variables over those of this process; secrets are here alone.
        host: The address that it listens on.
        port: The port.
        log: The file that gets what it says.
        grace_seconds: How long it may take to end before it is killed.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    host: str
    port: int
    log: Path
    grace_seconds: float = GRACE_SECONDS

    @property
    def address(self) -> str:
        """Where this machine reaches it: `http://127.0.0.1:8000`."""
        return url(_ANY.get(self.host, self.host), self.port)


class Child:
    """A running vLLM. Its state is the process. Leaving the context ends it, and everything that it started.

    a supervisor process stands between: when this process is killed, even by SIGKILL, the supervisor ends vLLM.
    """

    def __init__(self, start: Start) -> None:
        self.start = start
        self._began = time.monotonic()
        start.log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_descriptor(start.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as log:
            self._process = start_child(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(start.grace_seconds), *start.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                environment=start.environment,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self._began

    def wait_until_healthy(self, seconds: float, *, tell: Callable[[str], None] = lambda _: None) -> None:
        """Wait until it answers.

        Args:
            seconds: How long at most.
            tell: Told now and then what it says.

        Raises:
            LlmctlError: it ended before it answered, or did not answer in time.
        """
        while not self._answers():
            self.check()
            if self.seconds > seconds:
                lines = last_lines(self.start.log)
                raise MachineError(
                    f"vLLM did not answer within {seconds:g} seconds{_quoted(lines)}",
                    hint=f"its log: {self.start.log}; vllm.startup_seconds gives it more time",
                    details={"log": str(self.start.log), "last_lines": lines},
                )
            tell(newest_message(self.start.log))
            time.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Raise what it ended with, if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise self._ended(code)

    def check_well(self) -> None:
        """Raise what it ended with, or that it does not answer any more; a moment is left for its end to show."""
        deadline = time.monotonic() + _END_SHOWS_SECONDS
        while not self._answers():
            self.check()
            if time.monotonic() > deadline:
                raise MachineError("vLLM does not answer any more", hint=f"its log: {self.start.log}")
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        """End it, and wait until it and what it started are gone. Twice does no harm."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self.start.grace_seconds + 5)
            except subprocess.TimeoutExpired:
                self._process.kill()  # the supervisor hangs: the system then kills the server
                self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def interrupt(self) -> None:
        """Pass a request to end on to it, without waiting. A second one kills it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it ends by itself or because it was interrupted. Returns the exit code."""
        while True:
            try:
                return self._process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.start.address.removeprefix("http://"), timeout=5)
        with closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _ended(self, code: int) -> LlmctlError:
        lines = last_lines(self.start.log)
        found = explain(lines, code, port=self.start.port)
        return found.kind(
            f"vLLM ended: {found.message}{_quoted(lines)}",
            hint="; ".join(part for part in (found.hint, f"its log: {self.start.log}") if part),
            details={"log": str(self.start.log), "last_lines": lines, "exit_code_of_vllm": code},
        )


def _quoted(lines: list[str]) -> str:
    return "".join(f"\n  | {line}" for line in lines[-8:])


def new_log() -> Path:
    """The log of a server that is started now."""
    return log_dir() / f"vllm-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"


def new_key() -> str:
    """An API key for a server of one's own."""
    return secrets.token_urlsafe(32)


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """A port that can be listened on at the moment: this one, or for 0 one that is free. Errors are those of `bind`."""
    sockets = bind(host, port)
    found = port_of(sockets)
    for opened in sockets:
        opened.close()
    return found
