"""Continuous batching: each forward pass computes the new tokens of all sequences together.

A sequence joins as soon as the KV cache has free pages for its prompt, and leaves as soon as it ends (Orca, OSDI 2022;
paged KV cache: vLLM, arXiv:2309.06180). When the KV cache is full, the newest sequence is preempted: its pages are
freed, and it is computed again later with the same text.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError
from llmctl.generation.answer import Answer
from llmctl.generation.completion import Event
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.capacity import EngineCapacity
from llmctl.generation.engine.forward import Segment, forward, lay_out
from llmctl.generation.engine.prefix_cache import PAGE_TOKENS, PrefixCache, SharedPrefix
from llmctl.generation.engine.sampler import Sampler, Samplers
from llmctl.generation.logprobs import TokenLogprob, token_logprob
from llmctl.generation.request import Request
from llmctl.generation.structured.constraint import processors as structure_processors

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.loading.model import LoadedModel


@dataclass(eq=False)
class SequenceState:
    """The state of one unfinished answer.

    Attributes:
        ids: Token ids of the prompt and the answer so far.
        pages: Pages of the KV cache that hold its tokens.
        computed: Number of tokens whose keys and values are in those pages.
    """

    key: Any
    answer: Answer
    sampler: Sampler
    ids: list[int]
    pages: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of the prompt and the answer."""
        request = self.answer.request
        return len(request.prompt) + request.budget

    @property
    def media_key(self) -> bytes:
        """The digest of the media in the prompt."""
        return self.answer.request.prompt.media_key


class PackedRunner:
    """Schedules packed sequences over a paged KV cache. Its state: waiting and running sequences, and the cache."""

    def __init__(self, loaded: "LoadedModel", capacity: EngineCapacity) -> None:
        self.loaded, self.capacity = loaded, capacity
        self.prefilled_tokens = self.generated_tokens = 0
        self.samplers = Samplers(loaded.model)
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.forget()

    def forget(self) -> None:
        """Replace the KV cache by an empty one. No sequence may be running."""
        idle = self.capacity.idle_tokens
        pages = max(2, self.capacity.kv_tokens // PAGE_TOKENS)
        self.prefix_cache = PrefixCache(pages, max_idle=None if idle is None else idle // PAGE_TOKENS)
        self._kv = CachePool(pages, PAGE_TOKENS)

    @property
    def is_busy(self) -> bool:
        """True if any sequence is waiting or running."""
        return bool(self.waiting or self.running)

    @property
    def max_sequence_tokens(self) -> int:
        """Maximum tokens of one sequence, if it has the whole KV cache."""
        return self.prefix_cache.count * PAGE_TOKENS

    def sequence(self, key: Any, request: Request, processors: Sequence[Any]) -> SequenceState:
        """Return a sequence for a request, without queueing it.

        Args:
            processors: Logits processors for this answer only, applied after those of its structure.
        """
        all_processors = [*structure_processors(request, self.loaded.tokenizer), *processors]
        answer = Answer(self.loaded.tokenizer, request)
        return SequenceState(key, answer, self.samplers.make(request, all_processors), list(request.prompt.ids))

    def cancel(self, key: Any) -> None:
        """Drop an answer and free its pages."""
        self.waiting = deque(s for s in self.waiting if s.key != key)
        for sequence in [s for s in self.running if s.key == key]:
            self._leave(sequence)

    def drop_all(self) -> None:
        """Drop every sequence; the prefix cache is kept."""
        self.waiting.clear()
        for sequence in list(self.running):
            self._leave(sequence)

    def step(self) -> list[Event]:
        """Run one pass of the model and return its events."""
        events = self._admit()
        parts = self._parts()
        if not parts:
            return events
        layout = lay_out(
            [Segment(s.ids[s.computed : s.computed + count], s.computed, s.pages) for s, count in parts],
            page_tokens=PAGE_TOKENS,
        )
        logits = forward(self.loaded.model, layout, self._kv)
        ready: list[tuple[SequenceState, int]] = []
        for row, (sequence, count) in enumerate(parts):
            start = sequence.computed
            sequence.computed += count
            if not sequence.answer.token_ids:
                self.prefilled_tokens += count
            if sequence.computed // PAGE_TOKENS > start // PAGE_TOKENS:
                self._remember(sequence, start=start)
            if sequence.computed == len(sequence.ids):
                ready.append((sequence, row))
        return events + self._sample(ready, logits)

    def _sample(self, ready: list[tuple[SequenceState, int]], logits: "Tensor") -> list[Event]:
        """Sample the next token of every sequence in `ready`, which has (sequence, row of the logits)."""
        argmax: list[int] = logits.argmax(-1).tolist()
        events = []
        for sequence, row in ready:
            greedy = sequence.sampler.is_greedy
            try:
                token = argmax[row] if greedy else sequence.sampler.sample(sequence.ids, logits[row].float())
            except LlmctlError as error:  # a structure that became too complex
                self._leave(sequence)
                events.append(Event(sequence.key, end=error))
                continue
            pieces = sequence.answer.take(token, _logprob(sequence.answer.request, logits[row], token))
            self.generated_tokens += 1
            sequence.ids.append(token)
            if sequence.answer.finish_reason is not None:
                pieces += sequence.answer.finish()
                self._leave(sequence)
                events.append(Event(sequence.key, tuple(pieces), sequence.answer.completion()))
            elif pieces:
                events.append(Event(sequence.key, tuple(pieces)))
        return events

    # -- scheduling

    def _admit(self) -> list[Event]:
        """Start waiting sequences while their prompts fit. Return an error event for each that can never fit."""
        refused = []
        while self.waiting and len(self.running) < self.capacity.sequences:
            sequence = self.waiting[0]
            if self.prefix_cache.needed(sequence.max_tokens) > self.prefix_cache.count:
                refused.append(Event(self.waiting.popleft().key, end=self._too_long(sequence.max_tokens)))
                continue
            shared = self.prefix_cache.share(sequence.ids, media_key=sequence.media_key)
            wanted = self.prefix_cache.needed(len(sequence.ids) + 1) - len(shared.pages)
            # leave one free page for each running sequence, which may need it in the next pass
            if self.running and wanted + len(self.running) > self.prefix_cache.free:
                self.prefix_cache.release(shared.held)
                break
            self._begin(sequence, shared)
            self.running.append(self.waiting.popleft())
        return refused

    def _begin(self, sequence: SequenceState, shared: SharedPrefix) -> None:
        """Give a sequence the cached pages of its prefix."""
        sequence.pages, sequence.computed = shared.pages, len(shared.pages) * PAGE_TOKENS
        if shared.partial is None:
            return
        page = self.prefix_cache.take()
        if page is not None:
            self._kv.copy_page(shared.partial, page, shared.partial_tokens)
            sequence.pages.append(page)
            sequence.computed += shared.partial_tokens
        self.prefix_cache.release([shared.partial])

    def _parts(self) -> list[tuple[SequenceState, int]]:
        """Return the sequences of the next pass with their token counts, after taking pages for them.

        Decoding sequences come first, with one token each; prompts fill the rest of the pass.
        """
        left = max(self.capacity.pass_tokens, len(self.running))
        parts = []
        for sequence in sorted(self.running, key=lambda s: len(s.ids) - s.computed > 1):
            count = min(len(sequence.ids) - sequence.computed, left)
            if count and sequence in self.running and self._take_pages(sequence, sequence.computed + count):
                parts.append((sequence, count))
                left -= count
        return [part for part in parts if part[0] in self.running]

    def _take_pages(self, sequence: SequenceState, tokens: int) -> bool:
        """Take pages for `tokens`, preempting the newest sequences. Return False if `sequence` is preempted itself."""
        while len(sequence.pages) < self.prefix_cache.needed(tokens):
            page = self.prefix_cache.take()
            if page is not None:
                sequence.pages.append(page)
                continue
            victim = self.running[-1]
            self._leave(victim)
            self.waiting.appendleft(victim)
            if victim is sequence:
                return False
        return True

    def _leave(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        if sequence.computed % PAGE_TOKENS:
            self._remember(sequence, start=sequence.computed, include_partial=True)
        self.prefix_cache.release(sequence.pages)
        sequence.pages, sequence.computed = [], 0

    def _remember(self, sequence: SequenceState, *, start: int, include_partial: bool = False) -> None:
        computed = sequence.ids[: sequence.computed]
        self.prefix_cache.remember(
            sequence.pages, computed, start=start, include_partial=include_partial, media_key=sequence.media_key
        )

    def _too_long(self, tokens: int) -> MachineError:
        return MachineError(
            f"prompt and answer may have {tokens} tokens, but the KV cache has memory for only "
            f"{self.max_sequence_tokens}",
            hint="lower --max-new-tokens, or shorten the prompt",
        )


def _logprob(request: Request, logits: "Tensor", token: int) -> TokenLogprob | None:
    return None if request.logprobs is None else token_logprob(logits, token, request.logprobs)
