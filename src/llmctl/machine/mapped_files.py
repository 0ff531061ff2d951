"""The pages of mapped weight files that a process holds, and how it lets go of them.

safetensors maps a file into memory; every page that was read counts as the process' own until the system needs room.
While weights are quantised that would be the whole of the unquantised model.
"""

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

from llmctl.platform_support import mapped_regions

_EVERY_BYTES = 64 << 20
_DONTNEED = 4  # MADV_DONTNEED, the same on every architecture of Linux


class MappedFiles:
    """Mappings of some files that were not there when this was made: those of the load that is going on.

    Pages are let go from time to time. They are read-only to everybody here, and come back from the file when they are
    looked at again.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._files = {str(Path(file).resolve()) for file in files} if sys.platform == "linux" else set()
        self._before = set(self._ranges())
        self._read_bytes = 0

    def let_go(self, read_bytes: int) -> None:
        """Note that so much was read; let go of the pages when it is much."""
        self._read_bytes += read_bytes
        if not self._files or self._read_bytes < _EVERY_BYTES:
            return
        self._read_bytes = 0
        libc = ctypes.CDLL(None)
        for start, end in self._ranges():
            if (start, end) not in self._before:
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)

    def _ranges(self) -> list[tuple[int, int]]:
        """Where the files are mapped."""
        if not self._files:
            return []
        return [(start, end) for start, end, path in mapped_regions() if path in self._files]
