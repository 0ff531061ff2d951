"""A file that is on its way: its bytes, and the hash of them, until it may take its place."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from llmctl.hub.listing import RemoteFile
from llmctl.platform_support import open_descriptor, read_at, write_at

OURS = ".llmctl."
SUFFIX = f"{OURS}incomplete"  # huggingface_hub counts `blobs/*.incomplete` as unfinished downloads and can prune them
_READ_BYTES = 4 << 20


def partial_path(blob: Path) -> Path:
    """Where the bytes of a blob lie until they are complete. The same in every run, so every run can go on."""
    return blob.with_name(blob.name + SUFFIX)


class Partial:
    """The open partial of one file. What earlier runs left is hashed again first, so nothing is trusted unread.

    It changes while the file arrives; only one worker of one process (the holder of the lock) has it open.
    """

    def __init__(self, blob: Path, file: RemoteFile, *, go_on: Callable[[], None]) -> None:
        self.blob, self.file, self.path = blob, file, partial_path(blob)
        self.size_bytes = 0
        self._go_on = go_on
        self._descriptor = open_descriptor(self.path, os.O_RDWR | os.O_CREAT)
        try:
            self.read_again()
        except BaseException:
            self.close()
            raise

    def read_again(self) -> None:
        """Hash what is on the disk, and drop what is longer than the file can be."""
        self._hash = self._new_hash()
        self.size_bytes = 0
        if os.fstat(self._descriptor).st_size > self.file.size_bytes:
            os.ftruncate(self._descriptor, 0)
        while piece := read_at(self._descriptor, _READ_BYTES, self.size_bytes):
            self._go_on()
            self._hash.update(piece)
            self.size_bytes += len(piece)

    def adopt(self, path: Path) -> None:
        """Take a file that was brought whole by other means in place of what is here, and hash it."""
        self.close()  # Windows replaces no open file
        path.replace(self.path)
        self._descriptor = open_descriptor(self.path, os.O_RDWR)
        self.read_again()

    def write(self, piece: bytes) -> int:
        """Append a piece, cut to what the file may still take; returns how much was taken."""
        view = memoryview(piece)[: self.file.size_bytes - self.size_bytes]
        self._hash.update(view)
        write_at(self._descriptor, view, self.size_bytes)
        self.size_bytes += len(view)
        return len(view)

    def start_over(self) -> int:
        """Throw away every byte; returns how many there were."""
        dropped = self.size_bytes
        os.ftruncate(self._descriptor, 0)
        self._hash = self._new_hash()
        self.size_bytes = 0
        return dropped

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there, right or wrong."""
        return self.size_bytes == self.file.size_bytes

    @property
    def is_right(self) -> bool:
        """Whether the bytes are those that the repository lists."""
        return self.is_complete and self._hash.hexdigest() == self.file.digest

    def place(self) -> None:
        """Let the file take its place: on the disk first, under its name then."""
        os.fsync(self._descriptor)
        self.close()  # Windows renames no open file
        self.path.replace(self.blob)

    def close(self) -> None:
        """Close it; the bytes stay."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _new_hash(self) -> "hashlib._Hash":
        if self.file.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.file.size_bytes, usedforsecurity=False)
