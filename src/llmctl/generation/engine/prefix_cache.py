"""The allocation of pages of the paged KV cache, and the prefix cache.

A page holds the keys and values of a number of consecutive tokens of one sequence, in every layer. A full page is
identified by its tokens and all earlier ones, so a sequence with the same prefix shares it
instead of computing it again. If only the first tokens of a page match, those tokens can be copied. A page that no
sequence holds is idle. It keeps its contents until pages run out or too many are idle; the least recently used idle
page is reused first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PrefixKey = bytes  # a digest of all tokens up to the end of a page


@dataclass(frozen=True)
class _Contents:
    """The contents of a page: the key of all earlier tokens, its tokens, and its key if it is full."""

    before: PrefixKey
    ids: tuple[int, ...]
    key: PrefixKey | None


@dataclass(frozen=True)
class SharedPrefix:
    """Cached pages with the prefix of a sequence. All of them are held for that sequence.

    Attributes:
        tokens: Number of tokens whose keys and values the pages have.
        pages: Full pages.
        partial: A page of which only the first tokens match, or None. The caller copies them and releases the page.
        partial_tokens: Number of matching tokens in `partial`.
    """

    tokens: int
    pages: list[int]
    partial: int | None = None
    partial_tokens: int = 0

    @property
    def held(self) -> list[int]:
        """All pages, including `partial`."""
        return self.pages if self.partial is None else [*self.pages, self.partial]


class PrefixCache:
    """Allocates the pages of a paged KV cache. Its state: the number of holders and the contents of each page.

    Args:
        count: Number of pages.
        page_tokens: Tokens of a page.
        max_idle: Maximum idle pages that keep their contents while unused pages remain. A page takes memory when it is
            first written, so without this bound idle prefixes would fill a CPU's memory.
    """

    def __init__(self, count: int, *, page_tokens: int, max_idle: int | None = None) -> None:
        self.count = count
        self.max_idle = count if max_idle is None else max_idle
        self.page_tokens = page_tokens
        self._untouched = 0  # pages from this number on were never used, and take no memory yet
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # idle pages, least recently used first
        self._full: dict[PrefixKey, int] = {}
        self._contents: dict[int, _Contents] = {}
        # pages by the key of the prefix that they continue and their first token
        self._continuing: dict[tuple[PrefixKey, int], dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Number of pages that `take` could return now."""
        return self.count - self._untouched + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Return the number of pages for `tokens`."""
        return -(-tokens // self.page_tokens)

    def take(self) -> int | None:
        """Return a page that no other sequence shares; None if all pages are held."""
        full = self._untouched >= self.count or len(self._idle) > self.max_idle
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
        """Release the pages of a sequence. Its last pages are reused first: more sequences share the first ones."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._idle[page] = None
                if page not in self._contents:
                    self._idle.move_to_end(page, last=False)

    def remember(
        self,
        pages: Sequence[int],
        ids: Sequence[int],
        *,
        start: int,
        include_partial: bool = False,
        salt: bytes = b"",
    ) -> None:
        """Record that a sequence's pages hold `ids`.

        Args:
            pages: All pages of the sequence.
            ids: All tokens of the sequence that the pages hold.
            start: Index of a token; all earlier pages are recorded already.
            include_partial: Also record a last page that is not full. Nothing may be written to it afterwards.
            salt: Bytes that keep apart equal tokens with different keys and values.
        """
        size = self.page_tokens
        keys = [salt, *self._keys(ids, len(ids) // size, salt)]
        for number in range(start // size, len(keys) - 1):
            key = keys[number + 1]
            if key not in self._full and pages[number] not in self._contents:
                self._full[key] = pages[number]
                page_ids = tuple(ids[number * size : (number + 1) * size])
                self._keep(pages[number], _Contents(keys[number], page_ids, key))
        rest = tuple(ids[(len(keys) - 1) * size :])
        if include_partial and rest and pages[len(keys) - 1] not in self._contents and not self._has(keys[-1], rest):
            self._keep(pages[len(keys) - 1], _Contents(keys[-1], rest, None))

    def share(self, ids: Sequence[int], *, salt: bytes = b"") -> SharedPrefix:
        """Return the cached pages for a prefix of `ids`, which never includes the last token, and hold them."""
        pages: list[int] = []
        before = salt
        for key in self._keys(ids, (len(ids) - 1) // self.page_tokens, salt):
            page = self._full.get(key)
            if page is None:
                break
            pages.append(page)
            before = key
        rest = ids[len(pages) * self.page_tokens : len(ids) - 1]
        matching = {page: _common(self._contents[page].ids, rest) for page in self._candidates(before, rest)}
        partial = max(matching, key=matching.__getitem__, default=None)
        partial_tokens = matching[partial] if partial is not None else 0
        shared = SharedPrefix(len(pages) * self.page_tokens + partial_tokens, pages, partial, partial_tokens)
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
        """Return True if a page has these tokens after the prefix; such tokens are not recorded a second time."""
        return any(self._contents[page].ids[: len(ids)] == ids for page in self._candidates(before, ids))

    def _candidates(self, before: PrefixKey, ids: Sequence[int]) -> Iterable[int]:
        """Return the pages that continue a prefix with at least the first token of `ids`."""
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
