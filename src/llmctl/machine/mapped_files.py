"""The release of memory pages of mapped weight files.

safetensors maps a file into memory, and every page that was read counts as memory of the process until the system needs
it. Without a release, that would be the whole unquantised model when weights are quantised.
"""

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

from llmctl.platform_support import mapped_regions

_EVERY_BYTES = 64 << 20
_DONTNEED = 4  # MADV_DONTNEED, the same on every architecture of Linux


class MappedFiles:
    """The mappings of some files that were made after this object: those of the current load.

    Pages are released from time to time. They are read-only, and are read from the file again when they are needed.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._files = {str(Path(file).resolve()) for file in files} if sys.platform == "linux" else set()
        self._before = set(self._ranges())
        self._read_bytes = 0

    def release_after(self, read_bytes: int) -> None:
        """Note that bytes were read, and release the pages once there are many."""
        self._read_bytes += read_bytes
        if not self._files or self._read_bytes < _EVERY_BYTES:
            return
        self._read_bytes = 0
        libc = ctypes.CDLL(None)
        for start, end in self._ranges():
            if (start, end) not in self._before:
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)

    def _ranges(self) -> list[tuple[int, int]]:
        """Return the address ranges of the files."""
        if not self._files:
            return []
        return [(start, end) for start, end, path in mapped_regions() if path in self._files]
