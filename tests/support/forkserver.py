"""Processes of `llmctl` that start in milliseconds: forked from one that has imported torch and transformers.

Importing them takes a child process 2 to 5 seconds of a core, and most tests of the command line start one. A forked
child is a process as real as any other, with its own memory, environment, folder, files, signals and exit code; only
the imports happened before. `start` returns a `Process` with the methods of `subprocess.Popen`. A child whose
environment changes what Python imports, and any child where there is no fork, is an ordinary one.

Run as a program, this module is the server. A test process starts one on first use and talks to it over a socket.
"""

import array
import atexit
import codecs
import contextlib
import functools
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parent.parent.parent
_LENGTH = struct.Struct("!I")
# The compiled library, children of llmctl that import as little as they can, and a plugin of vLLM.
_NOT_IMPORTED = (
    "llmctl.__main__",
    "llmctl.cpu.llmctl_kernels",
    "llmctl.doctor.child",
    "llmctl.bench.child",
    "llmctl.vllm.plugin",
)
_READ_BY_IMPORTS = ("PYTHONPATH", "LLMCTL_PLAIN_IMPORTS")
# transformers imports a class on its first use; these are what llmctl's tests use most.
_CLASSES = (
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "GenerationConfig",
    "LlamaForCausalLM",
    "PreTrainedTokenizerFast",
)
_CODECS = ("idna", "utf-8-sig", "utf-16", "utf-32")  # imported late, when another user may be unable to read them
_PACKAGES = (
    "bitsandbytes",
    "llguidance",
    "peft.tuners.lora.bnb",
    "transformers.integrations.bitsandbytes",
    "transformers.trainer_utils",
)


class Process:
    """A forked `llmctl`."""

    def __init__(self, args: Sequence[str], pid: int, status: socket.socket, files: Sequence[IO[Any] | None]) -> None:
        self.args, self.pid = list(args), pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = files
        self._status = status.detach()
        self._read: dict[str, Any] = {}
        self._readers: list[threading.Thread] = []

    def poll(self) -> int | None:
        """Return the exit code if the process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the process has ended."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            line = os.read(self._status, 64)
            os.close(self._status)
            self.returncode = int(line) if line else -signal.SIGKILL  # the server ended, and took its children along
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write the input, read both outputs to their ends and wait. May be called again after a timeout."""
        until = None if timeout is None else time.monotonic() + timeout
        if not self._readers:
            for name in ("stdout", "stderr"):
                if (file := getattr(self, name)) is not None:
                    self._readers.append(threading.Thread(target=self._drain, args=(name, file), daemon=True))
            self._readers.append(threading.Thread(target=self._feed, args=(input,), daemon=True))
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(None if until is None else max(0, until - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if until is None else max(0, until - time.monotonic()))
        return self._read.get("stdout"), self._read.get("stderr")

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM unless the process has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        if self.returncode is None:
            os.close(self._status)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()
        self.wait()

    def _drain(self, name: str, file: IO[Any]) -> None:
        self._read[name] = file.read()
        file.close()

    def _feed(self, text: Any) -> None:
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                if text:
                    self.stdin.write(text)


def start(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    text: bool = False,
    terminal: bool = False,
    program: tuple[str, ...] = ("-m", "llmctl"),
    user: int | None = None,
) -> "Process | subprocess.Popen[Any]":
    """Start `llmctl ARGUMENTS`; the parameters are those of `subprocess.Popen`.

    Args:
        terminal: Make standard input the controlling terminal of a new session.
        program: What Python runs instead of llmctl: a script, or `-c` and code.
        user: Number of the user to become. Only root can.
    """
    env = os.environ if env is None else env
    arguments = (*program, *arguments)
    if not hasattr(os, "fork") or any(env.get(name) != os.environ.get(name) for name in _READ_BY_IMPORTS):
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, text=text)
    ours: list[IO[Any] | None] = []
    theirs: list[int] = []
    to_close: list[int] = []
    for number, wanted in enumerate((stdin, stdout, stderr)):
        fd, file, opened = _stream(number, wanted, text=text, stdout=theirs[-1] if number == 2 else -1)
        theirs.append(fd)
        ours.append(file)
        to_close += opened
    status, far_end = socket.socketpair()
    message = {
        "arguments": arguments,
        "env": dict(env),
        "cwd": str(cwd or Path.cwd()),
        "terminal": terminal,
        "user": user,
    }
    try:
        server = _server()
        body = json.dumps(message).encode()
        fds = array.array("i", [*theirs, far_end.fileno()])
        server.sendmsg([_LENGTH.pack(len(body))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        server.sendall(body)
    finally:
        far_end.close()
        for fd in to_close:
            os.close(fd)
    [pid] = _LENGTH.unpack(_exactly(status, _LENGTH.size))
    return Process(arguments, pid, status, ours)


def run(
    *arguments: str,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    timeout: float = 240,
    program: tuple[str, ...] = ("-m", "llmctl"),
    user: int | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run `llmctl ARGUMENTS`, or another program as in `start`, through pipes to its end."""
    pipe = subprocess.PIPE
    with start(
        *arguments, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, text=True, program=program, user=user
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _stream(number: int, wanted: int | IO[Any] | None, *, text: bool, stdout: int) -> tuple[int, Any, list[int]]:
    """Return the child's end of a stream, our end if it is a pipe, and what to close here once the child has it."""
    if wanted is None:
        return number, None, []
    if wanted == subprocess.DEVNULL:
        fd = os.open(os.devnull, os.O_RDWR)
        return fd, None, [fd]
    if wanted == subprocess.STDOUT:
        return stdout, None, []
    if wanted != subprocess.PIPE:
        return (wanted if isinstance(wanted, int) else wanted.fileno()), None, []
    read, write = os.pipe()
    theirs, our_fd, mode = (read, write, "w") if number == 0 else (write, read, "r")
    file = open(our_fd, mode, encoding="utf-8") if text else open(our_fd, mode + "b")  # noqa: PTH123, SIM115
    return theirs, file, [theirs]


@functools.cache
def _server() -> socket.socket:
    """Return the connection to this process's fork server, started on the first call."""
    ours, theirs = socket.socketpair()
    # nothing of the test that happens to be the first may reach the others
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLMCTL_", "HF_"))}
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env={**env, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        cwd=ROOT,
    )
    theirs.close()

    def stop() -> None:
        ours.close()
        process.wait()

    atexit.register(stop)
    return ours


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError("the other side of the fork server is gone")
        data += piece
    return data


# -- the server


def _import_everything() -> None:
    """Import what commands import, in the way that they do it."""
    import llmctl
    from llmctl.loading.lean_imports import lean_imports

    with lean_imports():
        import transformers

        for name in _CLASSES:
            getattr(transformers, name)
    for name in _PACKAGES:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    for module in pkgutil.walk_packages(llmctl.__path__, "llmctl."):
        if not module.name.startswith(_NOT_IMPORTED):
            importlib.import_module(module.name)
    for name in _CODECS:
        codecs.lookup(name)
    _read_environment_again()
    gc.collect()
    gc.freeze()  # or the first collection of a child would copy every page


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork a child a request. Return the request in the child, and None in the server when there are no more."""
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                wake.recv(4096)
            for pid, code in _ended():
                with contextlib.suppress(OSError), running.pop(pid) as status:
                    status.sendall(str(code).encode())
        if control not in ready:
            continue
        request = _request(control)
        if request is None:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return None
        fds = request["fds"]
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (control, wake, woken, *running.values()):
                each.close()
            os.close(fds[3])
            return request
        for fd in fds[:3]:
            os.close(fd)
        running[pid] = socket.socket(fileno=fds[3])
        with contextlib.suppress(OSError):
            running[pid].sendall(_LENGTH.pack(pid))


def _request(control: socket.socket) -> dict[str, Any] | None:
    data, ancillary, _, _ = control.recvmsg(_LENGTH.size, socket.CMSG_SPACE(4 * 4))
    if not data:
        return None
    data += _exactly(control, _LENGTH.size - len(data))
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content)
    request: dict[str, Any] = json.loads(_exactly(control, *_LENGTH.unpack(data)))
    return {**request, "fds": list(fds)}


def _ended() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _become(request: dict[str, Any]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    for number, fd in enumerate(request["fds"][:3]):
        os.dup2(fd, number)
    for fd in request["fds"][:3]:
        os.close(fd)
    if request["terminal"]:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    _read_environment_again()
    code: Any = 1
    try:
        _run_program(*request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_program(name: str, *arguments: str) -> None:
    """Do what `python NAME ARGUMENTS` does."""
    if name == "-m":
        from llmctl.cli.main import run as llmctl

        sys.argv = list(arguments)
        llmctl()
        return
    sys.argv = ["-c", *arguments[1:]] if name == "-c" else [name, *arguments]
    source = arguments[0] if name == "-c" else Path(name).read_text(encoding="utf-8")
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(source, name, "exec"), vars(main))


def _read_environment_again() -> None:
    """Give huggingface_hub's constants, which it reads from the environment on import, their values of now."""
    from huggingface_hub import constants

    from llmctl.hub.environment import drop_empty, import_faults

    fresh = ModuleType("constants")
    vars(fresh).update({name: vars(constants)[name] for name in ("__file__", "__package__", "__spec__")})
    drop_empty(os.environ)
    if next(import_faults(os.environ), None) is not None:
        return  # llmctl ends with an error before it needs a constant
    exec(_code_of(constants.__file__), vars(fresh))
    changed = {
        name: (before, vars(fresh)[name])
        for name, before in vars(constants).items()
        if name.isupper() and vars(fresh)[name] != before
    }
    for module in list(sys.modules.values()):
        if module.__name__.startswith(("huggingface_hub", "transformers", "llmctl")):
            for name, (before, now) in changed.items():
                if name in vars(module) and vars(module)[name] == before:
                    setattr(module, name, now)


@functools.cache
def _code_of(file: str) -> Any:
    return compile(Path(file).read_text(encoding="utf-8"), file, "exec")


if __name__ == "__main__":
    _import_everything()
    _request_of_mine = _serve(socket.socket(fileno=int(sys.argv[1])))
    if _request_of_mine is not None:
        _become(_request_of_mine)
