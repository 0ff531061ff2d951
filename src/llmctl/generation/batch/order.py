"""Output in the order of the rows, for answers that finish in any order."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Reorders items by their row number. Its state: the next number, and the waiting items."""

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[int, T] = {}

    def add(self, number: int, item: T) -> Iterator[T]:
        """Add the item of row `number`; yield all items that are next in order."""
        self._waiting[number] = item
        while self._next in self._waiting:
            yield self._waiting.pop(self._next)
            self._next += 1


class Pipe:
    """A batch output to an open stream, such as standard output. Such a run cannot be resumed."""

    def __init__(self, stream: BinaryIO, *, ordered: bool = True) -> None:
        self._stream = stream
        self._order: InOrder[bytes] | None = InOrder() if ordered else None

    def find(self, key: str) -> None:
        """Return None: a stream has no earlier answers."""

    def keep(self, number: int, offset: int) -> None:
        raise AssertionError("there is no earlier answer to keep")

    def append(self, number: int, document: Mapping[str, Any]) -> None:
        """Write the answer of row `number`, or hold it back until its turn comes."""
        line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        for ready in self._order.add(number, line) if self._order else (line,):
            self._stream.write(ready)
        self._stream.flush()

    def finish(self) -> int:
        """Return 0: every answer has been written, and none was replaced."""
        return 0

    def close(self) -> None:
        """Leave the stream open: its owner closes it."""
