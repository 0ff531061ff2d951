"""The answers of a batch on the disk, so that a run that is killed at any moment can go on.

OUTPUT.partial holds the answers in the order in which they come, each line appended as a whole. When every row has one,
OUTPUT is written beside, in the order of the rows, and takes its name; OUTPUT.partial goes. What earlier runs left in
OUTPUT and OUTPUT.partial under the same key is taken over.
"""

import errno
import json
import os
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.batch.keys import Identity
from llmctl.platform_support import open_descriptor, read_at, remove_open_file, sync_to_disk, try_lock, write_at

PARTIAL, NEW, REPLACED = ".partial", ".new", ".replaced"
_SYNC_SECONDS = 1.0
_IN_OUTPUT = 1 << 61  # marks a place in OUTPUT; other places are in OUTPUT.partial
_TAKEN = 1 << 62  # marks an answer that a row of this run has asked for
_NOWHERE = -1
_READ_BYTES = 8192
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class Found(NamedTuple):
    """An answer that was there before: its line, and where it lies."""

    document: dict[str, Any]
    place: int


class Journal:
    """The output of one run. Its state: which answers there are and where; of the answers it holds none in memory.

    Args:
        path: OUTPUT.
        run: What the keys of this run end with.
        overwrite: Whether answers that were made otherwise may go.
        ordered: Whether OUTPUT gets the order of the rows, or that in which they were answered.

    Raises:
        UserError: OUTPUT is something else, or was made with another model or other settings.
        MachineError: another process writes there, or the disk refuses.
    """

    def __init__(self, path: Path, run: Identity, *, overwrite: bool = False, ordered: bool = True) -> None:
        self.path = path.resolve()
        self._run, self._overwrite, self._ordered = run, overwrite, ordered
        self._places = array("q")  # of the rows: by their number, or as they came
        self._answered: dict[int, int] = {}  # the row's part of a key -> its place
        self._more: dict[int, list[int]] = {}  # further places of rows that are there several times
        self._output: BinaryIO | None = None
        self._output_rows = self._end = 0
        self._synced = time.monotonic()
        with explained(self.path):
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._partial = _open_locked(self._beside(PARTIAL))
            try:
                self._read()
            except BaseException:
                self.close()
                raise

    # -- what was there

    def _read(self) -> None:
        others: dict[str, int] = {}
        if self.path.exists():
            self._output = self.path.open("rb")
            for at, line in _lines(self._output):
                self._output_rows += 1
                self._note(line, at | _IN_OUTPUT, others)
        with os.fdopen(os.dup(self._partial), "rb") as partial:
            for at, line in _lines(partial):
                if not line.endswith(b"\n"):  # the run was killed while it wrote this
                    break
                self._end = at + len(line)
                self._note(line, at, others)
        if others and not self._overwrite:
            raise _made_otherwise(self.path, others)
        os.ftruncate(self._partial, self._end)

    def _note(self, line: bytes, place: int, others: dict[str, int]) -> None:
        """Remember an answer that can be taken over; count it in `others` when it was made otherwise."""
        try:
            document = json.loads(line)
            key, is_error = document.get("key"), "error" in document
            row, settings, model = str(key).split("-") if not is_error else ("0", *_parts(self._run))
            part = int(row, 16)
        except (ValueError, AttributeError):
            if place & _IN_OUTPUT:  # in OUTPUT.partial it is what a power cut leaves: the row is answered again
                others["foreign"] = others.get("foreign", 0) + 1
            return
        if (settings, model) != _parts(self._run):
            other = "settings" if model == self._run.model else "model"
            others[other] = others.get(other, 0) + 1
        elif not is_error and self._answered.setdefault(part, place) != place:
            self._more.setdefault(part, []).append(place)

    def find(self, key: str) -> Found | None:
        """The answer that an earlier run gave for this key."""
        part = int(key.partition("-")[0], 16)
        place = self._answered.get(part)
        if place is None:
            return None
        if place & _TAKEN and self._more.get(part):
            place = self._more[part].pop(0)
        self._answered[part] = place | _TAKEN
        place &= ~_TAKEN
        return Found(json.loads(self._line(place)), place)

    def keep(self, number: int, place: int) -> None:
        """Row `number` has its answer already, at `place`, as it must be."""
        if self._ordered:
            while len(self._places) < number:
                self._places.append(_NOWHERE)
            self._places[number - 1] = place
        else:
            self._places.append(place)

    # -- what is new

    def append(self, number: int, document: Mapping[str, Any]) -> None:
        """Write the answer of row `number`: its whole line or, when the disk refuses, nothing. Raises MachineError."""
        line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        place = self._end
        with explained(self.path):
            try:
                write_at(self._partial, line, place)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._partial, place)
                raise
            self._end += len(line)
            self.keep(number, place)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._partial)
                self._synced = time.monotonic()

    def finish(self) -> int:
        """Every row has its answer: OUTPUT gets them all. Returns how many earlier answers no row asked for.

        Those are appended to OUTPUT.replaced, unless they may be overwritten.
        """
        left = [place for place in self._answered.values() if not place & _TAKEN]
        with explained(self.path):
            if not self._is_as_it_was(left):
                self._write_beside(self._beside(NEW), self._places, "wb")
                if left and not self._overwrite:
                    self._write_beside(self._beside(REPLACED), left, "ab")
                if self._output is not None:
                    self._output.close()  # Windows replaces no open file
                self._beside(NEW).replace(self.path)
                with suppress(OSError):  # not every file system lets a folder be synced
                    sync_to_disk(self.path.parent)
            self._end = 0
            os.ftruncate(self._partial, 0)  # `close` removes it
        return len(left)

    def _is_as_it_was(self, left: list[int]) -> bool:
        """Whether OUTPUT has exactly these answers in this order already."""
        if self._output is None or left or len(self._places) != self._output_rows:
            return False
        return all(place & _IN_OUTPUT for place in self._places) and list(self._places) == sorted(self._places)

    def _write_beside(self, path: Path, places: "array[int] | list[int]", mode: str) -> None:
        with path.open(mode) as file:
            for place in places:
                assert place != _NOWHERE, "every row has an answer"  # noqa: S101
                file.write(self._line(place))
            file.flush()
            os.fsync(file.fileno())

    def _line(self, place: int) -> bytes:
        """The line at a place, with its end."""
        descriptor = self._partial
        if place & _IN_OUTPUT and self._output is not None:
            descriptor, place = self._output.fileno(), place & ~_IN_OUTPUT
        parts: list[bytes] = []
        while part := read_at(descriptor, _READ_BYTES << len(parts), place):
            line, newline, _ = part.partition(b"\n")
            parts.append(line)
            place += len(part)
            if newline:
                break
        return b"".join([*parts, b"\n"])

    def close(self) -> None:
        """Let go of the files; OUTPUT.partial stays for the next run if there is anything in it."""
        if self._output is not None:
            self._output.close()
        if self._partial < 0:
            return
        is_empty = False
        with suppress(OSError):
            os.fsync(self._partial)
            is_empty = os.fstat(self._partial).st_size == 0
        if is_empty:
            remove_open_file(self._beside(PARTIAL), self._partial)
        else:
            os.close(self._partial)
        self._partial = -1

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def _parts(run: Identity) -> tuple[str, str]:
    return run.settings, run.model


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their ends, and where each begins."""
    file.seek(0)
    at = 0
    for line in file:
        yield at, line
        at += len(line)


def _open_locked(path: Path) -> int:
    """Open OUTPUT.partial for one process alone. Raises MachineError."""
    while True:
        descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise MachineError(
                f"another run is writing {path.with_suffix('')}", hint="wait for it, or give another --output"
            )
        # the run that had the lock may have taken the file away at its end: a lock on that one protects nothing
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def _made_otherwise(path: Path, others: Mapping[str, int]) -> UserError:
    """Why the answers that are there cannot be gone on with."""
    if "foreign" in others:
        return UserError(
            f"{path} is there, and is no output of llmctl generate",
            hint="give another --output, or --overwrite to replace it",
        )
    what = "another model, dtype or quantisation" if "model" in others else "other settings"
    count = sum(others.values())
    return UserError(
        f"{path} has {count:,} answer{'s' if count != 1 else ''} made with {what}",
        hint="give another --output, or --overwrite to let them go",
        details={"path": str(path), **others},
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one line what the disk refuses. Raises MachineError or UserError for OSError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _refusal(error, path) from error


def _refusal(error: OSError, path: Path) -> LlmctlError:
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return MachineError(
            f"cannot write {path}: {reason}",
            hint="what is answered is kept: make room, then run the same command again",
        )
    if error.errno in _NO_SUCH_PLACE:
        return UserError(f"cannot write {path}: {reason}", hint="give a file in a folder that is there: --output FILE")
    return MachineError(f"cannot write {path}: {reason}", hint="give an --output that you may write to")
