"""How a download tells what it is doing. The core never draws: a front end brings an object of this shape."""

from collections.abc import Sequence
from typing import Protocol


class Progress(Protocol):
    """Listens to a download. Methods may be called from several threads at once and must return quickly."""

    def start(self, files: Sequence[tuple[str, int, int]]) -> None:
        """The files to fetch: path, size in bytes, and how many of these are already on the disk."""

    def advance(self, path: str, count: int) -> None:
        """`count` bytes of `path` arrived; negative where bytes had to be thrown away."""

    def finished(self, path: str, size_bytes: int) -> None:
        """`path` was checked against its hash and lies in its place."""

    def note(self, text: str) -> None:
        """Something a person should know while it goes on: a wait, a retry, a lock."""

    def close(self) -> None:
        """Nothing more will come, whatever the outcome."""


class Silent:
    """A `Progress` that says nothing."""

    def start(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Say nothing."""

    def advance(self, path: str, count: int) -> None:
        """Say nothing."""

    def finished(self, path: str, size_bytes: int) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""
