"""The three standard streams: repaired when the program starts, and their failures told apart from other errors."""

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from llmctl.errors import LlmctlError, MachineError, UserError

_ESCAPE = "llmctl-escape"
_NAMES = ("stdin", "stdout", "stderr")


class StandardOutput:
    """Standard output of this process. Its state: the error that ended it, and True once a character was escaped."""

    def __init__(self) -> None:
        self.failure: OSError | None = None
        self.has_escapes = False
        self._is_unicode = True

    def prepare(self) -> None:
        """Record failures from now on, and write characters that the encoding lacks as `\\uXXXX`.

        Streams that are not the process' own, such as those of a test, are left as they are.
        """
        stream = sys.stdout
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer
        if not isinstance(stream, io.TextIOWrapper) or type(raw) is not io.FileIO:
            return
        codecs.register_error(_ESCAPE, self._escape)
        self._is_unicode = stream.encoding.lower().startswith("utf")
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Recorder(raw.fileno(), self)),
            encoding=stream.encoding,
            errors=_ESCAPE,
            newline="\n" if os.linesep == "\n" else None,
            line_buffering=stream.line_buffering or stream.write_through,
        )

    def _escape(self, error: UnicodeError) -> tuple[str, int]:
        """Replace what cannot be encoded by escapes that JSON reads back as the same characters."""
        if not isinstance(error, UnicodeEncodeError):
            raise error
        self.has_escapes = self.has_escapes or not self._is_unicode
        units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end

    def explain_failure(self) -> LlmctlError | None:
        """Return the error of llmctl for a failed write; None for a pipe whose reader has left, such as head."""
        assert self.failure is not None  # noqa: S101 (the caller has checked it)
        silence(sys.stdout)
        if isinstance(self.failure, BrokenPipeError):
            return None
        return MachineError(
            f"cannot write to standard output: {self.failure.strerror}",
            hint="send it to a disk with free space: > FILE",
        )


class _Recorder(io.FileIO):
    """A file that keeps the error of a failed write: the exception alone does not tell which file it was."""

    def __init__(self, descriptor: int, output: StandardOutput) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._output = output

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._output.failure = error
            raise


def open_closed_streams() -> None:
    """Open the null device in place of closed standard streams.

    A closed descriptor would be given to the next file that is opened, and messages would be written into that file.

    Raises:
        UserError: standard output was closed. It is known before any work is done.
    """
    closed = [number for number, name in enumerate(_NAMES) if getattr(sys, name) is None]
    for number in closed:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number and not _is_open(number):
            os.dup2(descriptor, number)
            os.close(descriptor)
            descriptor = number
        mode = "r" if number == 0 else "w"
        setattr(sys, _NAMES[number], open(descriptor, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    if 1 in closed:
        raise UserError("standard output is closed", hint="send it somewhere: > FILE, or > /dev/null")


def silence(stream: TextIO) -> None:
    """Send a stream that cannot be written to the null device, so that Python does not fail on it when it ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
