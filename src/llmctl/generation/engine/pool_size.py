"""The number of pages of the paged KV cache, which shrinks when memory runs out and returns to its size later."""

import time
from collections.abc import Callable

_MOST_HALVINGS = 6
_RETURN_SECONDS = 60.0  # another process may have needed the memory for a moment


class PoolSize:
    """The number of pages. Its state: that number, and when it was last halved.

    Attributes:
        pages: Current number.
        planned: Number without a lack of memory.

    Args:
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, planned: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.planned = self.pages = planned
        self._clock, self._halved_at = clock, 0.0
        self._least = max(2, planned >> _MOST_HALVINGS)

    @property
    def half(self) -> int:
        """The number after the next halving; the current number if that is the least."""
        return min(self.pages, max(self._least, self.pages // 2))

    def halve(self) -> None:
        """Halve the number, down to the least."""
        self.pages, self._halved_at = self.half, self._clock()

    def grow(self) -> bool:
        """Return to the planned number if the last halving is long ago. Return True if the number changed."""
        if self.pages == self.planned or self._clock() - self._halved_at < _RETURN_SECONDS:
            return False
        self.pages = self.planned
        return True
