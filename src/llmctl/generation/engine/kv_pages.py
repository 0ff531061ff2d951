"""The pages of the key-value pool: who holds which, and which hold the beginning of a text that comes again.

A page holds the keys and values of `PAGE_TOKENS` consecutive tokens of one sequence, in every layer. A full page is
known by its tokens and all those before them, so that a sequence with the same beginning takes it instead of computing
it. Of a page that agrees in its first tokens only, those can be copied. A page nobody holds keeps its contents until
the room is needed, or too many are kept, the longest unused first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PAGE_TOKENS = 16
Beginning = bytes  # a digest of all tokens up to the end of a page; empty before the first one


@dataclass(frozen=True)
class _Contents:
    """What a page holds: its tokens, all those before them, and, when it is full, both together."""

    before: Beginning
    ids: tuple[int, ...]
    beginning: Beginning | None


@dataclass(frozen=True)
class Shared:
    """What is known already of a sequence's beginning. All its pages are held.

    Attributes:
        pages: Full pages.
        partial: A page whose first tokens go on from there, or None: they are to be copied, and the page released.
        partial_tokens: How many of them.
    """

    pages: list[int]
    partial: int | None = None
    partial_tokens: int = 0

    @property
    def held(self) -> list[int]:
        """Every page that is held."""
        return self.pages if self.partial is None else [*self.pages, self.partial]


class Pages:
    """The pool's book-keeping. Its state: holders of each page, and what full pages hold.

    Args:
        count: How many pages there are.
        page_tokens: Tokens of one page.
        most_idle: So many that nobody holds may keep their contents while others were never used. On a CPU a pool would
            fill the memory otherwise, however little is under way: pages take memory once they are written.
    """

    def __init__(self, count: int, *, page_tokens: int = PAGE_TOKENS, most_idle: int | None = None) -> None:
        self.count = count
        self.most_idle = count if most_idle is None else most_idle
        self.page_tokens = page_tokens
        self._untouched = 0  # pages from here on have never been used: their memory is not touched before it must be
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # held by nobody, contents kept, longest unused first
        self._known: dict[Beginning, int] = {}
        self._contents: dict[int, _Contents] = {}
        # pages that go on from a beginning with a token
        self._after: dict[tuple[Beginning, int], dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Pages that `take` could give now."""
        return self.count - self._untouched + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self.page_tokens)

    def take(self) -> int | None:
        """A page of one's own, or None when all are held."""
        full = self._untouched >= self.count or len(self._idle) > self.most_idle
        if self._idle and (full or next(iter(self._idle)) not in self._contents):
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

    def remember(self, pages: Sequence[int], ids: Sequence[int], *, start: int, last_too: bool = False) -> None:
        """The pages of a sequence hold `ids`; those from token `start` on are new.

        Args:
            pages: All of them.
            ids: Their tokens, from the first on.
            start: Pages before that of this token are remembered already.
            last_too: Remember a last page that is not full, too: nothing more will be written to it.
        """
        size = self.page_tokens
        beginnings = [b"", *self._beginnings(ids, len(ids) // size)]
        for number in range(start // size, len(beginnings) - 1):
            beginning = beginnings[number + 1]
            if beginning not in self._known and pages[number] not in self._contents:
                own = tuple(ids[number * size : (number + 1) * size])
                self._known[beginning] = pages[number]
                self._keep(pages[number], _Contents(beginnings[number], own, beginning))
        rest = tuple(ids[(len(beginnings) - 1) * size :])
        if (
            last_too
            and rest
            and pages[len(beginnings) - 1] not in self._contents
            and not self._has(beginnings[-1], rest)
        ):
            self._keep(pages[len(beginnings) - 1], _Contents(beginnings[-1], rest, None))

    def share(self, ids: Sequence[int]) -> Shared:
        """Pages that hold the beginning of `ids`, now held once more. The last token is never among them."""
        found: list[int] = []
        before = b""
        for beginning in self._beginnings(ids, (len(ids) - 1) // self.page_tokens):
            page = self._known.get(beginning)
            if page is None:
                break
            found.append(page)
            before = beginning
        rest = ids[len(found) * self.page_tokens : len(ids) - 1]
        agreeing = {page: _common(self._contents[page].ids, rest) for page in self._going_on(before, rest)}
        partial = max(agreeing, key=agreeing.__getitem__, default=None)
        shared = Shared(found, partial, agreeing[partial] if partial is not None else 0)
        for page in shared.held:
            self._holders[page] = self._holders.get(page, 0) + 1
            self._idle.pop(page, None)
        return shared

    def _beginnings(self, ids: Sequence[int], pages: int) -> Iterator[Beginning]:
        digest = b""
        for number in range(pages):
            tokens = array("q", ids[number * self.page_tokens : (number + 1) * self.page_tokens])
            digest = hashlib.blake2b(digest + tokens.tobytes(), digest_size=16).digest()
            yield digest

    def _has(self, before: Beginning, ids: tuple[int, ...]) -> bool:
        """Whether a page holds these tokens after that beginning. The same text a hundred times fills one page."""
        return any(self._contents[page].ids[: len(ids)] == ids for page in self._going_on(before, ids))

    def _going_on(self, before: Beginning, ids: Sequence[int]) -> Iterable[int]:
        """Pages that agree in the first token of `ids` at the least."""
        return self._after.get((before, ids[0]), ()) if ids else ()

    def _keep(self, page: int, contents: _Contents) -> None:
        self._contents[page] = contents
        self._after.setdefault((contents.before, contents.ids[0]), {})[page] = None

    def _forget(self, page: int) -> None:
        contents = self._contents.pop(page, None)
        if contents is None:
            return
        place = (contents.before, contents.ids[0])
        del self._after[place][page]
        if not self._after[place]:
            del self._after[place]
        if contents.beginning is not None:
            del self._known[contents.beginning]


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
