"""The interface through which a download reports progress. The core never draws; a front end implements this."""

from collections.abc import Sequence
from typing import Protocol


class Progress(Protocol):
    """A listener to a download. Its methods may be called from several threads at once and must return quickly."""

    def start(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Receive the files to fetch: path, size in bytes, and bytes already on the disk."""

    def advance(self, path: str, count: int) -> None:
        """Note that `count` bytes of `path` arrived; negative where bytes had to be discarded."""

    def finished(self, path: str, size_bytes: int) -> None:
        """Note that `path` matches its hash and is in its place."""

    def note(self, text: str) -> None:
        """Receive a message for the user: a wait, a retry, a lock."""

    def close(self) -> None:
        """Note that the download has ended, whatever the outcome."""


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
