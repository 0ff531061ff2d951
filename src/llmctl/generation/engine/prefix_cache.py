"""The pages of the paged KV cache: which sequence holds which page, and which prefix each page belongs to.

A page holds the keys and values of `PAGE_TOKENS` consecutive tokens of one sequence, in every layer. A full page is
found by its tokens, all tokens before them, and the media of the prompt, so a sequence with the same prefix shares it
instead of computing it again. From a page that agrees only in its first tokens, those tokens can be copied. A page that
no sequence holds keeps its contents until its room is needed or too many are idle; the least recently used goes first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PAGE_TOKENS = 16
PrefixKey = bytes  # a digest of the media and of all tokens up to the end of a page


@dataclass(frozen=True)
class _Contents:
    """The contents of a page: its tokens, the key of all tokens before them, and its own key once it is full."""

    before: PrefixKey
    ids: tuple[int, ...]
    key: PrefixKey | None


@dataclass(frozen=True)
class SharedPrefix:
    """The pages that hold a sequence's beginning already. All of them are held.

    Attributes:
        pages: Full pages.
        partial: A page whose first tokens continue the prefix, or None. They must be copied and the page released.
        partial_tokens: Number of those tokens.
    """

    pages: list[int]
    partial: int | None = None
    partial_tokens: int = 0

    @property
    def held(self) -> list[int]:
        """Every page that is held."""
        return self.pages if self.partial is None else [*self.pages, self.partial]


class PrefixCache:
    """The book-keeping of a paged KV cache. Its state: the holders and the contents of each page.

    Args:
        count: Number of pages.
        page_tokens: Tokens of one page.
        most_idle: Maximum idle pages that keep their contents while unused pages remain. Memory is taken when a page is
            first written, so without this bound idle prefixes would fill a CPU's memory.
    """

    def __init__(self, count: int, *, page_tokens: int = PAGE_TOKENS, most_idle: int | None = None) -> None:
        self.count = count
        self.most_idle = count if most_idle is None else most_idle
        self.page_tokens = page_tokens
        self._untouched = 0  # pages from here on were never used: their memory is not touched before it is needed
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # not held, contents kept, least recently used first
        self._full: dict[PrefixKey, int] = {}
        self._contents: dict[int, _Contents] = {}
        # pages that continue a prefix, by the prefix and their first token
        self._continuing: dict[tuple[PrefixKey, int], dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Pages that `take` could return now."""
        return self.count - self._untouched + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Return the number of pages for `tokens`."""
        return -(-tokens // self.page_tokens)

    def take(self) -> int | None:
        """Return a page for one sequence alone, or None when all are held."""
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
        """Release pages. The end of a sequence is evicted before its beginning, which more sequences share."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._idle[page] = None
                if page not in self._contents:
                    self._idle.move_to_end(page, last=False)

    def remember(
        self, pages: Sequence[int], ids: Sequence[int], *, start: int, last_too: bool = False, media_key: bytes = b""
    ) -> None:
        """Record that a sequence's pages hold `ids`.

        Args:
            pages: All pages of the sequence.
            ids: Its tokens, from the first on.
            start: Pages before the one of this token are recorded already.
            last_too: Also record a last page that is not full: nothing more will be written to it.
            media_key: The digest of the media in the prompt.
        """
        size = self.page_tokens
        keys = [media_key, *self._keys(ids, len(ids) // size, media_key)]
        for number in range(start // size, len(keys) - 1):
            key = keys[number + 1]
            if key not in self._full and pages[number] not in self._contents:
                self._full[key] = pages[number]
                page_ids = tuple(ids[number * size : (number + 1) * size])
                self._keep(pages[number], _Contents(keys[number], page_ids, key))
        rest = tuple(ids[(len(keys) - 1) * size :])
        if last_too and rest and pages[len(keys) - 1] not in self._contents and not self._has(keys[-1], rest):
            self._keep(pages[len(keys) - 1], _Contents(keys[-1], rest, None))

    def share(self, ids: Sequence[int], *, media_key: bytes = b"") -> SharedPrefix:
        """Return the pages that hold the beginning of `ids`, now held once more; never the last token."""
        pages: list[int] = []
        before = media_key
        for key in self._keys(ids, (len(ids) - 1) // self.page_tokens, media_key):
            page = self._full.get(key)
            if page is None:
                break
            pages.append(page)
            before = key
        rest = ids[len(pages) * self.page_tokens : len(ids) - 1]
        agreeing = {page: _common(self._contents[page].ids, rest) for page in self._candidates(before, rest)}
        partial = max(agreeing, key=agreeing.__getitem__, default=None)
        shared = SharedPrefix(pages, partial, agreeing[partial] if partial is not None else 0)
        for page in shared.held:
            self._holders[page] = self._holders.get(page, 0) + 1
            self._idle.pop(page, None)
        return shared

    def _keys(self, ids: Sequence[int], pages: int, digest: PrefixKey) -> Iterator[PrefixKey]:
        for number in range(pages):
            tokens = array("q", ids[number * self.page_tokens : (number + 1) * self.page_tokens])
            digest = hashlib.blake2b(digest + tokens.tobytes(), digest_size=16).digest()
            yield digest

    def _has(self, before: PrefixKey, ids: tuple[int, ...]) -> bool:
        """Whether a page holds these tokens after that prefix: the same text a hundred times fills one page."""
        return any(self._contents[page].ids[: len(ids)] == ids for page in self._candidates(before, ids))

    def _candidates(self, before: PrefixKey, ids: Sequence[int]) -> Iterable[int]:
        """Return the pages after a prefix that agree with `ids` in at least the first token."""
        return self._continuing.get((before, ids[0]), ()) if ids else ()

    def _keep(self, page: int, contents: _Contents) -> None:
        self._contents[page] = contents
        self._continuing.setdefault((contents.before, contents.ids[0]), {})[page] = None

    def _forget(self, page: int) -> None:
        contents = self._contents.pop(page, None)
        if contents is None:
            return
        start = (contents.before, contents.ids[0])
        del self._continuing[start][page]
        if not self._continuing[start]:
            del self._continuing[start]
        if contents.key is not None:
            del self._full[contents.key]


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
