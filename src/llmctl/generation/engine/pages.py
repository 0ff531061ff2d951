"""The pages of the key-value pool: who holds which, and which hold the beginning of a text that comes again.

A page holds the keys and values of `PAGE_TOKENS` consecutive tokens of one sequence, in every layer. A full page is
known by its tokens and all those before them, so that a sequence with the same beginning takes it instead of computing
it. A page nobody holds keeps its contents until the room is needed, the longest unused first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

PAGE_TOKENS = 16
Beginning = bytes  # a digest of all tokens up to the end of a page


class Pages:
    """The pool's book-keeping. Its state: holders of each page, and what full pages hold.

    Args:
        count: How many pages there are.
        page_tokens: Tokens of one page.
    """

    def __init__(self, count: int, *, page_tokens: int = PAGE_TOKENS) -> None:
        self.count = count
        self.page_tokens = page_tokens
        self._untouched = 0  # pages from here on have never been used: their memory is not touched before it must be
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # held by nobody, contents kept, longest unused first
        self._known: dict[Beginning, int] = {}
        self._contents: dict[int, Beginning] = {}

    @property
    def free(self) -> int:
        """Pages that `take` could give now."""
        return self.count - self._untouched + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self.page_tokens)

    def take(self) -> int | None:
        """A page of one's own, or None when all are held."""
        if self._idle and (self._untouched >= self.count or next(iter(self._idle)) not in self._contents):
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        elif self._untouched < self.count:
            page, self._untouched = self._untouched, self._untouched + 1
        else:
            return None
        self._holders[page] = 1
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Hold these no longer. The last ones of a sequence are given up first: beginnings are worth more."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._idle[page] = None
                if page not in self._contents:
                    self._idle.move_to_end(page, last=False)

    def remember(self, pages: Sequence[int], ids: Sequence[int], *, start: int) -> None:
        """The pages of a sequence are full up to `len(ids)` tokens; those from token `start` on are new."""
        beginnings = list(self._beginnings(ids, len(ids) // self.page_tokens))
        for number in range(start // self.page_tokens, len(beginnings)):
            page, beginning = pages[number], beginnings[number]
            if beginning not in self._known and page not in self._contents:
                self._known[beginning], self._contents[page] = page, beginning

    def share(self, ids: Sequence[int]) -> list[int]:
        """Pages that hold the beginning of `ids`, now held once more. The last token is never among them."""
        found: list[int] = []
        for beginning in self._beginnings(ids, (len(ids) - 1) // self.page_tokens):
            page = self._known.get(beginning)
            if page is None:
                break
            found.append(page)
        for page in found:
            self._holders[page] = self._holders.get(page, 0) + 1
            self._idle.pop(page, None)
        return found

    def _beginnings(self, ids: Sequence[int], pages: int) -> Iterator[Beginning]:
        digest = b""
        for number in range(pages):
            tokens = array("q", ids[number * self.page_tokens : (number + 1) * self.page_tokens])
            digest = hashlib.blake2b(digest + tokens.tobytes(), digest_size=16).digest()
            yield digest

    def _forget(self, page: int) -> None:
        beginning = self._contents.pop(page, None)
        if beginning is not None:
            del self._known[beginning]
