"""The state of one unfinished answer of a packed run."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from llmctl.generation.answer import Answer
from llmctl.generation.engine.layout import Segment
from llmctl.generation.engine.sampler import Sampler
from llmctl.generation.engine.sequence_media import SequenceMedia


@dataclass(eq=False)
class SequenceState:
    """The state of one unfinished answer.

    Attributes:
        ids: Token ids of the prompt and the answer so far.
        pages: Pages of the KV cache that hold its tokens.
        computed: Number of tokens whose keys and values are in those pages, and which its recurrent state has seen.
        slot: The slot of its recurrent state while it runs.
        rope_length: Minimum length for which the RoPE is computed; 0 for the length of the sequence.
        checkpoints: The numbers of prompt tokens after which its recurrent state is kept, in ascending order.
        media: The images of the prompt, or None.
        text_id: The id that stands in passes for tokens of images.
    """

    key: Any
    answer: Answer
    sampler: Sampler
    ids: list[int]
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = 0
    rope_length: int = 0
    checkpoints: tuple[int, ...] = ()
    media: SequenceMedia | None = None
    text_id: int = 0

    def segment(self, count: int) -> Segment:
        """Return the next `count` tokens for a pass."""
        begin, end = self.computed, self.computed + count
        segment = Segment(self.ids[begin:end], begin, self.pages, self.slot, self.rope_length)
        if self.media is None:
            return segment
        rows = self.media.rows(begin, end)
        ids = list(segment.ids)
        for token in rows.tokens if rows is not None else ():
            ids[token] = self.text_id
        return replace(
            segment,
            ids=ids,
            positions=self.media.positions(begin, end),
            media=rows,
            visible_ends=self.media.visible_ends(begin, end),
        )

    def cache_ids(self, count: int | None = None) -> list[int]:
        """Return the ids by which caches know the first `count` tokens, by default all."""
        prompt = self.answer.request.prompt
        ids = [*prompt.cache_ids, *self.ids[len(prompt) :]] if prompt.media else self.ids
        return ids[:count]

    @property
    def tokens_to_checkpoint(self) -> int:
        """Number of tokens to compute before the recurrent state is kept, or before its tokens end."""
        return next((n for n in self.checkpoints if n > self.computed), len(self.ids)) - self.computed

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of the prompt and the answer."""
        request = self.answer.request
        return len(request.prompt) + request.budget

    @property
    def cache_salt(self) -> bytes:
        """The bytes that keep apart equal tokens with different keys and values."""
        salt = b"long RoPE" if self.rope_length else b""
        if self.media is not None and self.media.sees_prompt:  # the first tokens depend on the last ones
            salt += hashlib.blake2b(repr(self.answer.request.prompt.cache_ids).encode(), digest_size=16).digest()
        return salt
