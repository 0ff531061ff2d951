"""vLLM's server as a child process: start it, wait until it answers, and stop it in every case."""

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
from llmctl.vllm.failures import explain_exit, log_tail, newest_message

GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.2
_EXIT_SECONDS = 10.0
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 (a lookup, not a bind)


@dataclass(frozen=True)
class Launch:
    """The command, environment and address of a server.

    Attributes:
        command: vLLM's server with its arguments.
        environment: Variables added to those of this process; the only place for secrets.
        host: The bind address.
        port: The port.
        log: The file for its output.
        grace_seconds: Time that it has to stop before it is killed.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    host: str
    port: int
    log: Path
    grace_seconds: float = GRACE_SECONDS

    @property
    def address(self) -> str:
        """The URL on this machine: `http://127.0.0.1:8000`."""
        return url(_LOOPBACK_OF.get(self.host, self.host), self.port)


class VllmProcess:
    """A running vLLM. Its state is the process. Leaving the context stops vLLM and everything that it started.

    vLLM is the child of a supervisor process, which stops it if this process is killed, even by SIGKILL.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._started = time.monotonic()
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_descriptor(launch.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as log:
            self._process = start_child(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(launch.grace_seconds), *launch.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                environment=launch.environment,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def wait_until_healthy(self, seconds: float, *, on_message: Callable[[str], None] = lambda _: None) -> None:
        """Wait until it answers.

        Args:
            seconds: Time limit.
            on_message: Called with the newest line of its log, several times a second.

        Raises:
            LlmctlError: vLLM exited, or did not answer in time.
        """
        while not self._is_healthy():
            self.check_running()
            if self.seconds > seconds:
                lines = log_tail(self.launch.log)
                raise MachineError(
                    f"vLLM did not answer within {seconds:g} seconds{_quoted(lines)}",
                    hint=f"see its log {self.launch.log}; increase vllm.startup_seconds if it needs more time",
                    details={"log": str(self.launch.log), "last_lines": lines},
                )
            on_message(newest_message(self.launch.log))
            time.sleep(_POLL_SECONDS)

    def check_running(self) -> None:
        """Raise an error with the reason if vLLM has exited."""
        code = self._process.poll()
        if code is not None:
            raise self._exit_error(code)

    def check_healthy(self) -> None:
        """Raise an error if vLLM has exited or no longer answers. An exit may take a moment to become visible."""
        deadline = time.monotonic() + _EXIT_SECONDS
        while not self._is_healthy():
            self.check_running()
            if time.monotonic() > deadline:
                raise MachineError("vLLM no longer answers", hint=f"see its log {self.launch.log}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop vLLM, and wait until all its processes are gone. A second call has no effect."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self.launch.grace_seconds + 5)
            except subprocess.TimeoutExpired:
                self._process.kill()  # the supervisor hangs; without it, the system kills the server
                self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def interrupt(self) -> None:
        """Ask vLLM to stop, without waiting. A second call kills it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until vLLM exits. Return its exit code."""
        while True:
            try:
                return self._process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(self.launch.address.removeprefix("http://"), timeout=5)
        with closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _exit_error(self, code: int) -> LlmctlError:
        lines = log_tail(self.launch.log)
        failure = explain_exit(lines, code, port=self.launch.port)
        return failure.error(
            f"vLLM exited: {failure.message}{_quoted(lines)}",
            hint="; ".join(part for part in (failure.hint, f"see its log {self.launch.log}") if part),
            details={"log": str(self.launch.log), "last_lines": lines, "exit_code_of_vllm": code},
        )


def _quoted(lines: list[str]) -> str:
    return "".join(f"\n  | {line}" for line in lines[-8:])


def new_log() -> Path:
    """Return the path for the log of a new server."""
    return log_dir() / f"vllm-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"


def new_key() -> str:
    """Return a random API key."""
    return secrets.token_urlsafe(32)


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """Return a port that is free now: `port` itself, or any port for 0. Raises the errors of `bind`."""
    sockets = bind(host, port)
    free = port_of(sockets)
    for opened in sockets:
        opened.close()
    return free
