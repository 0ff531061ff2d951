"""The answers of a batch on disk. A run that is killed at any moment can be resumed.

Answers are appended to OUTPUT.partial as they arrive, one complete line at a time. When every row has an answer, a new
OUTPUT is written in the order of the rows and replaces the old one, and OUTPUT.partial is removed. Answers of earlier
runs in OUTPUT and OUTPUT.partial are reused if their keys are equal.
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
_OUTPUT_FLAG = 1 << 61  # set in offsets of OUTPUT; other offsets refer to OUTPUT.partial
_TAKEN_FLAG = 1 << 62  # set in offsets of answers that belong to a row of this run
_NO_OFFSET = -1
_READ_BYTES = 8192
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class EarlierAnswer(NamedTuple):
    """An answer of an earlier run, with the offset of its line."""

    document: dict[str, Any]
    offset: int


class Journal:
    """The output of one run. Its state: the offsets of answers, which are not kept in memory themselves.

    Args:
        path: OUTPUT.
        run: The identity at the end of all keys of this run.
        overwrite: Replace answers made with a different model or settings.
        ordered: Write OUTPUT in the order of the rows rather than of the answers.

    Raises:
        UserError: OUTPUT is not a batch output, or was made with a different model or settings.
        MachineError: another process is writing OUTPUT, or a disk operation failed.
    """

    def __init__(self, path: Path, run: Identity, *, overwrite: bool = False, ordered: bool = True) -> None:
        self.path = path.resolve()
        self._run, self._overwrite, self._ordered = run, overwrite, ordered
        self._offsets = array("q")  # of the rows, by row number or in the order of the answers
        self._answered: dict[int, int] = {}  # offsets by the row part of the key
        self._repeats: dict[int, list[int]] = {}  # offsets of further rows with the same key
        self._output: BinaryIO | None = None
        self._output_rows = self._end = 0
        self._synced = time.monotonic()
        with translate_disk_errors(self.path):
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._partial = _open_locked(self._beside(PARTIAL))
            try:
                self._read()
            except BaseException:
                self.close()
                raise

    # -- earlier answers

    def _read(self) -> None:
        mismatches: dict[str, int] = {}
        if self.path.exists():
            self._output = self.path.open("rb")
            for at, line in _lines(self._output):
                self._output_rows += 1
                self._index(line, at | _OUTPUT_FLAG, mismatches)
        with os.fdopen(os.dup(self._partial), "rb") as partial:
            for at, line in _lines(partial):
                if not line.endswith(b"\n"):  # the run was killed while writing it
                    break
                self._end = at + len(line)
                self._index(line, at, mismatches)
        if mismatches and not self._overwrite:
            raise _other_settings_error(self.path, mismatches)
        os.ftruncate(self._partial, self._end)

    def _index(self, line: bytes, offset: int, mismatches: dict[str, int]) -> None:
        """Record an answer that can be reused, or count it in `mismatches` if its settings or model differ."""
        try:
            document = json.loads(line)
            key, is_error = document.get("key"), document.get("error") is not None
            row, settings, model = str(key).split("-") if not is_error else ("0", *_parts(self._run))
            part = int(row, 16)
        except (ValueError, AttributeError):
            if offset & _OUTPUT_FLAG:  # in OUTPUT.partial, a power cut left such a line: the row is answered again
                mismatches["foreign"] = mismatches.get("foreign", 0) + 1
            return
        if (settings, model) != _parts(self._run):
            other = "settings" if model == self._run.model else "model"
            mismatches[other] = mismatches.get(other, 0) + 1
        elif not is_error and self._answered.setdefault(part, offset) != offset:
            self._repeats.setdefault(part, []).append(offset)

    def find(self, key: str) -> EarlierAnswer | None:
        """Return the answer of an earlier run with this key, or None."""
        part = int(key.partition("-")[0], 16)
        offset = self._answered.get(part)
        if offset is None:
            return None
        if offset & _TAKEN_FLAG and self._repeats.get(part):
            offset = self._repeats[part].pop(0)
        self._answered[part] = offset | _TAKEN_FLAG
        offset &= ~_TAKEN_FLAG
        return EarlierAnswer(json.loads(self._line(offset)), offset)

    def keep(self, number: int, offset: int) -> None:
        """Record that the answer of row `number` is at `offset`."""
        if self._ordered:
            while len(self._offsets) < number:
                self._offsets.append(_NO_OFFSET)
            self._offsets[number - 1] = offset
        else:
            self._offsets.append(offset)

    # -- new answers

    def append(self, number: int, document: Mapping[str, Any]) -> None:
        """Write the answer of row `number`. Raise MachineError, without an incomplete line, if writing fails."""
        line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        offset = self._end
        with translate_disk_errors(self.path):
            try:
                write_at(self._partial, line, offset)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._partial, offset)
                raise
            self._end += len(line)
            self.keep(number, offset)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._partial)
                self._synced = time.monotonic()

    def finish(self) -> int:
        """Write OUTPUT. Every row must have an answer. Return the number of earlier answers that belong to no row.

        These are appended to OUTPUT.replaced, unless `overwrite` is set.
        """
        left = [offset for offset in self._answered.values() if not offset & _TAKEN_FLAG]
        with translate_disk_errors(self.path):
            if not self._is_unchanged(left):
                self._write_beside(self._beside(NEW), self._offsets, "wb")
                if left and not self._overwrite:
                    self._write_beside(self._beside(REPLACED), left, "ab")
                if self._output is not None:
                    self._output.close()  # Windows cannot replace an open file
                self._beside(NEW).replace(self.path)
                with suppress(OSError):  # not every file system can sync a folder
                    sync_to_disk(self.path.parent)
            self._end = 0
            os.ftruncate(self._partial, 0)  # `close` removes it
        return len(left)

    def _is_unchanged(self, left: list[int]) -> bool:
        """Return True if OUTPUT already has exactly these answers in this order."""
        if self._output is None or left or len(self._offsets) != self._output_rows:
            return False
        return all(offset & _OUTPUT_FLAG for offset in self._offsets) and list(self._offsets) == sorted(self._offsets)

    def _write_beside(self, path: Path, offsets: "array[int] | list[int]", mode: str) -> None:
        with path.open(mode) as file:
            for offset in offsets:
                assert offset != _NO_OFFSET, "every row has an answer"  # noqa: S101
                file.write(self._line(offset))
            file.flush()
            os.fsync(file.fileno())

    def _line(self, offset: int) -> bytes:
        """Return the line at an offset, including its newline."""
        descriptor = self._partial
        if offset & _OUTPUT_FLAG and self._output is not None:
            descriptor, offset = self._output.fileno(), offset & ~_OUTPUT_FLAG
        parts: list[bytes] = []
        while part := read_at(descriptor, _READ_BYTES << len(parts), offset):
            line, newline, _ = part.partition(b"\n")
            parts.append(line)
            offset += len(part)
            if newline:
                break
        return b"".join([*parts, b"\n"])

    def close(self) -> None:
        """Close the files. OUTPUT.partial is kept for the next run unless it is empty."""
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
    """Yield the offset and the bytes of each line, including the newline."""
    file.seek(0)
    at = 0
    for line in file:
        yield at, line
        at += len(line)


def _open_locked(path: Path) -> int:
    """Open and lock OUTPUT.partial. Raise MachineError if another process has locked it."""
    while True:
        descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise MachineError(
                f"another run is writing {path.with_suffix('')}", hint="wait for it, or choose another --output"
            )
        # the previous owner of the lock may have removed the file: then this lock protects nothing
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def _other_settings_error(path: Path, mismatches: Mapping[str, int]) -> UserError:
    """Return the error for an OUTPUT whose answers cannot be reused."""
    if "foreign" in mismatches:
        return UserError(
            f"{path} exists and is not an output of llmctl generate",
            hint="choose another --output, or add --overwrite to replace it",
        )
    difference = "a different model, dtype or quantisation" if "model" in mismatches else "different settings"
    count = sum(mismatches.values())
    return UserError(
        f"{path} has {count:,} answer{'s' if count != 1 else ''} made with {difference}",
        hint="choose another --output, or add --overwrite to replace them",
        details={"path": str(path), **mismatches},
    )


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Translate OSError into MachineError or UserError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _disk_error(error, path) from error


def _disk_error(error: OSError, path: Path) -> LlmctlError:
    reason = error.strerror or type(error).__name__
    if error.errno in _DISK_FULL:
        return MachineError(
            f"cannot write {path}: {reason}",
            hint="finished answers are kept: free some space, then run the same command again",
        )
    if error.errno in _NO_SUCH_PATH:
        return UserError(f"cannot write {path}: {reason}", hint="give a file in an existing folder: --output FILE")
    return MachineError(f"cannot write {path}: {reason}", hint="choose an --output that you may write to")
