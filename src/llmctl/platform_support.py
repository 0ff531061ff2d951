"""The differences between operating systems: file locks, process limits, process groups, standard input, /proc.

No other module of llmctl uses a module or function that exists on some systems only (`tests/test_architecture.py`
checks this). Each function says what it does where the system lacks the feature. `vllm/supervisor.py` is
exempt: it is a script that uses only the standard library, and it needs Linux or macOS, as vLLM itself does.
"""

import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]
try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

# Forking a process that has loaded torch is safe only on Linux.
CAN_FORK_SAFELY = sys.platform == "linux" and resource is not None
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_WINDOWS_LOCK_OFFSET = 0x7FFFFFFE  # the last byte that msvcrt.locking reaches: its locks also block reading
_INPUT_WAIT_SECONDS = 0.2


# -- files


def open_descriptor(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file as `os.open` does, without Windows' translation of line ends. No child process inherits it."""
    return os.open(path, flags | getattr(os, "O_BINARY", 0), mode)


def open_without_waiting(path: Path) -> int:
    """Open a file for reading. A named pipe without a writer opens at once, too. Windows has no such files."""
    return open_descriptor(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Return up to `size_bytes` from `offset`. On Windows this moves the file position."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size_bytes, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size_bytes)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. On Windows this moves the file position."""
    written = 0
    while written < len(data):
        if hasattr(os, "pwrite"):
            written += os.pwrite(descriptor, data[written:], offset + written)
        else:
            os.lseek(descriptor, offset + written, os.SEEK_SET)
            written += os.write(descriptor, data[written:])


def sync_to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk. Does nothing for a folder that cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_open_file(path: Path, descriptor: int) -> None:
    """Remove a file, if the system allows it, and then close it, so that a lock on it holds until it is gone.

    Windows cannot remove an open file; there the descriptor is closed first.
    """
    if sys.platform == "win32":
        os.close(descriptor)
        with suppress(OSError):
            path.unlink(missing_ok=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def try_lock(file: Any) -> bool:
    """Lock an open file (or its descriptor) for this process, without waiting.

    Closing the file, or the end of the process, releases the lock. It is advisory (`flock`); on Windows one byte far
    beyond the content is locked instead.

    Returns:
        False if another process holds the lock. True if the file system has no locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif sys.platform == "win32":
            _lock_last_byte(file if isinstance(file, int) else file.fileno())
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def lock_folder(path: Path) -> int | None:
    """Lock a folder with `flock`, and return the descriptor whose closing releases it; None where there is no `flock`.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock_last_byte(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                raise BlockingIOError from error
            raise
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)


# -- standard input and pipes


def stdin_has_input() -> bool:
    """Return True if standard input is a file, or a pipe or socket that has data now (or within 0.2 s)."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if stat.S_ISREG(mode):
        return True
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    if sys.platform == "win32":
        import _winapi
        import msvcrt

        try:
            return _winapi.PeekNamedPipe(msvcrt.get_osfhandle(sys.stdin.fileno()), 0)[0] > 0
        except OSError:  # the writer has closed it
            return True
    return wait_readable(sys.stdin.fileno(), _INPUT_WAIT_SECONDS)


def wait_readable(descriptor: int, seconds: float) -> bool:
    """Wait for data on a pipe or socket. Windows can wait on sockets only."""
    import select

    readable, _, _ = select.select([descriptor], [], [], max(seconds, 0))
    return bool(readable)


# -- limits


def resource_limit(name: str) -> int | None:
    """Return a soft limit of this process by its POSIX name, such as "RLIMIT_AS"; None if there is none."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def confine_process(*, extra_memory_bytes: int) -> None:
    """Limit this process' address space to what it has now plus `extra_memory_bytes`. Linux only."""
    if resource is None:
        raise NotImplementedError("this system has no limits for a process")
    # Not through read_text: a forked child of a process with threads should do as little as it can.
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        pages = int(file.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_processor_time(seconds: float) -> None:
    """Let the system end this process after `seconds` more of processor time. Linux and macOS only."""
    if resource is None:
        raise NotImplementedError("this system has no limits for a process")
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


# -- processes


def fork() -> int:
    """Fork as `os.fork` does, without Python's warning about threads. Call it only if `CAN_FORK_SAFELY`."""
    with warnings.catch_warnings():
        # Python warns about forking with threads; the child only computes and writes, and takes none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def kill_forked(child: int) -> None:
    """Kill a forked child and wait until it is gone."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def close_files_except(descriptors: Sequence[int]) -> None:
    """Close all open files except the three standard ones and `descriptors`."""
    for before, after in itertools.pairwise((2, *sorted(descriptors), os.sysconf("SC_OPEN_MAX"))):
        os.closerange(before + 1, after)


def exit_now(code: int) -> NoReturn:
    """End this process without Python's clean-up."""
    os._exit(code)


def new_group() -> dict[str, Any]:
    """Return the arguments for `subprocess.Popen` that keep Ctrl-C in the terminal from reaching the process."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process that `new_group` started, and everything it started. On Windows, only the process itself."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def end_after(seconds: float) -> None:
    """Let the system end this process after `seconds` on the clock. Does nothing on Windows."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds))


def was_killed(code: int) -> bool:
    """Return True if an exit code of `subprocess` means that SIGKILL ended the process."""
    return sys.platform != "win32" and code == -signal.SIGKILL


def usable_cpus() -> int:
    """Return how many logical processors this process may use; all of them if the system has no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float | None:
    """Return the load average of the last minute; None on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far.

    On Linux it is VmHWM, because a process inherits the figure of getrusage from a larger parent. On macOS getrusage
    counts in bytes.
    """
    peak = process_status_bytes("VmHWM")
    if peak is not None:
        return peak
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    import psutil

    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


@contextmanager
def unechoed_input() -> Iterator[Callable[[], bytes]]:
    """Keep typed keys out of the terminal's output; yield a function that returns those typed so far.

    Ctrl-C still interrupts, and keeps what was typed before it. Without a terminal, and on Windows, where nothing is
    echoed and the keys wait for the next reader, the function returns nothing.
    """
    if termios is None or not sys.stdin.isatty():
        yield lambda: b""
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    mode = [*before[:6], list(before[6])]
    mode[3] = (mode[3] & ~(termios.ECHO | termios.ICANON)) | termios.NOFLSH
    mode[6][termios.VMIN] = mode[6][termios.VTIME] = 0  # a read does not wait
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
    try:
        yield lambda: b"".join(iter(lambda: os.read(terminal, 4096), b""))
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


# -- /proc and /sys, which only Linux has


def read_system_file(path: str) -> str:
    """Return the text of a file of /proc or /sys; an empty string if there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_sysctl(name: str) -> bytes:
    """Return a value of the kernel of macOS, by its name in sysctl(8); empty if there is none, or on another system."""
    if sys.platform != "darwin":
        return b""
    import ctypes

    value, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    code = ctypes.CDLL(None).sysctlbyname(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return value.raw[: size.value] if code == 0 else b""


def process_status_bytes(name: str) -> int | None:
    """Return a size from /proc/self/status, such as "VmRSS"; None if there is no such file or figure."""
    _, separator, rest = read_system_file("/proc/self/status").partition(f"\n{name}:")
    return int(rest.split()[0]) * 1024 if separator else None


class MappedRegion(NamedTuple):
    """An address range of this process into which a file is mapped."""

    start: int
    end: int
    path: str


def mapped_regions() -> Iterator[MappedRegion]:
    """Yield the address ranges of this process that map a file. Yields nothing outside Linux."""
    for line in read_system_file("/proc/self/maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, end = fields[0].split("-")
            yield MappedRegion(int(start, 16), int(end, 16), fields[5])
