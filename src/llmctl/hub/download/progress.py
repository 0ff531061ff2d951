"""The interface through which a download reports progress. The core never draws; a front end implements this."""

from collections.abc import Sequence
from typing import Protocol


class Progress(Protocol):
    """A listener to a download. Its methods may be called from several threads at once and must return quickly."""

    def start(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Receive the files to fetch: path, size in bytes, and bytes already on the disk."""

    def advance(self, path: str, count: int) -> None:
        """Handle `count` bytes of `path` that arrived; negative if bytes were discarded."""

    def finished(self, path: str, size_bytes: int) -> None:
        """Handle that `path` is complete, matches its hash, and has its final path."""

    def note(self, text: str) -> None:
        """Receive a message for the user: a wait, a retry, a lock."""

    def close(self) -> None:
        """Handle the end of the download, whatever the outcome."""


class Silent:
    """A `Progress` that ignores everything."""

    def start(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Do nothing."""

    def advance(self, path: str, count: int) -> None:
        """Do nothing."""

    def finished(self, path: str, size_bytes: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
