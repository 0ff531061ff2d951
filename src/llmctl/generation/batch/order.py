"""Answers that finish in any order, handed on in the order of the rows."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Holds back what is ahead of its turn. Its state: whose turn it is, and what waits."""

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[int, T] = {}

    def add(self, number: int, item: T) -> Iterator[T]:
        """Take the item of row `number`; yield those whose turn has come."""
        self._waiting[number] = item
        while self._next in self._waiting:
            yield self._waiting.pop(self._next)
            self._next += 1


class Pipe:
    """Answers written to an open stream at once: nothing is remembered, so nothing is resumed."""

    def __init__(self, stream: BinaryIO, *, ordered: bool = True) -> None:
        self._stream = stream
        self._order: InOrder[bytes] | None = InOrder() if ordered else None

    def find(self, key: str) -> None:
        """There is no earlier run."""

    def keep(self, number: int, place: int) -> None:
        raise AssertionError("there is no earlier answer to keep")

    def append(self, number: int, document: Mapping[str, Any]) -> None:
        """Write the answer of row `number`, or hold it back until its turn comes."""
        line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        for ready in self._order.add(number, line) if self._order else (line,):
            self._stream.write(ready)
        self._stream.flush()

    def finish(self) -> int:
        """Every answer was written when it came. Returns 0: nothing was replaced."""
        return 0

    def close(self) -> None:
        """The stream is not ours to close."""
