"""A file that is being downloaded: its bytes and their hash, until it is moved to its final path."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from llmctl.hub.cache.paths import OURS
from llmctl.hub.listing import RemoteFile
from llmctl.platform_support import open_descriptor, read_at, write_at

SUFFIX = f"{OURS}incomplete"  # huggingface_hub counts `blobs/*.incomplete` as unfinished downloads and can prune them
_READ_BYTES = 4 << 20


def partial_path(blob: Path) -> Path:
    """Return the path for the bytes of an incomplete blob: the same in every run, so that runs can resume."""
    return blob.with_name(blob.name + SUFFIX)


class Partial:
    """An open partial file. Bytes from earlier runs are hashed again first, since they may be damaged.

    It changes while the file arrives; only one worker of one process (the holder of the lock) has it open.
    """

    def __init__(self, blob: Path, file: RemoteFile, *, raise_if_stopped: Callable[[], None]) -> None:
        self.blob, self.file, self.path = blob, file, partial_path(blob)
        self.size_bytes = 0
        self._raise_if_stopped = raise_if_stopped
        self._descriptor = open_descriptor(self.path, os.O_RDWR | os.O_CREAT)
        try:
            self.read_again()
        except BaseException:
            self.close()
            raise

    def read_again(self) -> None:
        """Hash the bytes on the disk; discard them if there are more than the file has."""
        self._hash = self._new_hash()
        self.size_bytes = 0
        if os.fstat(self._descriptor).st_size > self.file.size_bytes:
            os.ftruncate(self._descriptor, 0)
        while piece := read_at(self._descriptor, _READ_BYTES, self.size_bytes):
            self._raise_if_stopped()
            self._hash.update(piece)
            self.size_bytes += len(piece)

    def adopt(self, path: Path) -> None:
        """Replace the content with a complete file that was fetched by other means, and hash it."""
        self.close()  # Windows cannot replace an open file
        path.replace(self.path)
        self._descriptor = open_descriptor(self.path, os.O_RDWR)
        self.read_again()

    def write(self, piece: bytes) -> int:
        """Append a piece, cut to the file's size, and return how many bytes were written."""
        view = memoryview(piece)[: self.file.size_bytes - self.size_bytes]
        self._hash.update(view)
        write_at(self._descriptor, view, self.size_bytes)
        self.size_bytes += len(view)
        return len(view)

    def start_over(self) -> int:
        """Discard all bytes, and return their number."""
        dropped = self.size_bytes
        os.ftruncate(self._descriptor, 0)
        self._hash = self._new_hash()
        self.size_bytes = 0
        return dropped

    @property
    def is_complete(self) -> bool:
        """True if all bytes have arrived, damaged or not."""
        return self.size_bytes == self.file.size_bytes

    @property
    def is_right(self) -> bool:
        """True if the bytes match the hash in the repository's listing."""
        return self.is_complete and self._hash.hexdigest() == self.file.digest

    def place(self) -> None:
        """Flush the file to the disk, then move it to its final path."""
        os.fsync(self._descriptor)
        self.close()  # Windows cannot rename an open file
        self.path.replace(self.blob)

    def close(self) -> None:
        """Close the file; its bytes are kept on the disk."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _new_hash(self) -> "hashlib._Hash":
        if self.file.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.file.size_bytes, usedforsecurity=False)
