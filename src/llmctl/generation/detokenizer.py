"""Incremental decoding of token ids to text.

A character can span several tokens, and a stop string several pieces. Text is released once neither can change it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "�"  # a decoder's output for the first bytes of an incomplete character


class TextAssembler:
    """Assembles the text of one answer. Its state: the ids so far, and the text released so far.

    Args:
        stop_strings: Strings that end the text; they are not part of it.
        decode: Replaces the decoder of the tokenizer.
        before: Ids before the text that it continues, since a space at its beginning can depend on them.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_strings: Sequence[str] = (),
        *,
        decode: Callable[[Sequence[int]], str] | None = None,
        before: Sequence[int] = (),
    ) -> None:
        self._decoder = decode or (lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)))
        self._stops = tuple(stop_strings)
        self._ids = list(before)
        self._final_count = len(before)  # number of ids whose text is final
        self._context = 0  # index of the first id to decode again, since spaces can depend on the previous token
        self._held = ""
        self.shown = ""
        self.stopped_by: str | None = None

    def add(self, token: int) -> str:
        """Add one token and return the text that can be shown now."""
        if self.stopped_by is not None:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._final_count])
        after = self._decode(self._ids[self._context :])
        if after.endswith(_INCOMPLETE) or len(after) <= len(before):
            return ""
        self._context, self._final_count = self._final_count, len(self._ids)
        return self._release(after[len(before) :], final=False)

    def finish(self) -> str:
        """End the text and return the part that was held back."""
        if self.stopped_by is not None:
            return ""
        before = self._decode(self._ids[self._context : self._final_count])
        after = self._decode(self._ids[self._context :])
        return self._release(after[len(before) :], final=True)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._decoder(ids) if ids else ""

    def _release(self, text: str, *, final: bool) -> str:
        pending = self._held + text
        first = min(
            ((at, stop) for stop in self._stops if (at := pending.find(stop)) >= 0), default=None, key=lambda x: x[0]
        )
        if first is not None:
            at, self.stopped_by = first
            released, self._held = pending[:at], ""
        else:
            keep = 0 if final else self._possible_start(pending)
            released, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.shown += released
        return released

    def _possible_start(self, text: str) -> int:
        """Return the length of the longest end of `text` that could be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
