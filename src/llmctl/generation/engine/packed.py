"""Continuous batching: each forward pass computes the new tokens of all sequences together.

A sequence joins as soon as the KV cache has free pages for its prompt, and leaves as soon as it ends (Orca, OSDI 2022;
paged KV cache: vLLM, arXiv:2309.06180). When the KV cache is full, the newest sequence is preempted: its pages are
freed, and it is computed again later with the same text.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llmctl.errors import LlmctlError, MachineError
from llmctl.generation.answer import Answer
from llmctl.generation.completion import Event
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.capacity import EngineCapacity
from llmctl.generation.engine.decode_graphs import DecodeGraphs
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.generation.engine.next_tokens import Choice, logprobs_of, next_tokens
from llmctl.generation.engine.packed_modules import has_recurrent_state, page_tokens
from llmctl.generation.engine.pool_size import PoolSize
from llmctl.generation.engine.prefix_cache import PrefixCache, SharedPrefix
from llmctl.generation.engine.sampler import Samplers
from llmctl.generation.engine.sequence import SequenceState
from llmctl.generation.engine.sequence_media import SequenceMedia
from llmctl.generation.engine.state_checkpoints import Checkpoint, StateCheckpoints, checkpoint_positions
from llmctl.generation.logprobs import TokenLogprob
from llmctl.generation.request import Request
from llmctl.generation.structured.constraint import processors as structure_processors
from llmctl.gpu.graphs import GraphRecorder
from llmctl.loading.attention_mask import sees_whole_prompt
from llmctl.loading.device_memory import is_out_of_memory, release_memory
from llmctl.loading.image_encoder import image_encoder
from llmctl.rope import begins_again_at_switch, dynamic_rope_limit, rope_switch

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.loading.model import LoadedModel

T = TypeVar("T")
_MAX_CHECKPOINTS = 64
_CHECKPOINT_BYTES = 1 << 30
_CHECKPOINT_TOKENS = 512  # of an answer, after which its state is kept again


class PackedRunner:
    """Schedules packed sequences over a paged KV cache. Its state: waiting and running sequences, and the cache.

    Args:
        recorder: Records decode steps as graphs; None to run all steps without.
        samples_on_device: Choose the tokens of all sequences together on their device; by default on all but CPUs.
    """

    def __init__(
        self,
        loaded: "LoadedModel",
        capacity: EngineCapacity,
        *,
        recorder: GraphRecorder | None = None,
        samples_on_device: bool | None = None,
    ) -> None:
        self.loaded, self.capacity, self._recorder = loaded, capacity, recorder
        self.prefilled_tokens = self.generated_tokens = 0
        is_cpu = loaded.model.device.type == "cpu"
        self.samplers = Samplers(loaded.model, on_cpu=is_cpu if samples_on_device is None else not samples_on_device)
        self.page_tokens = page_tokens(loaded.model)
        self._has_state = has_recurrent_state(loaded.model)
        self._rope_switch = rope_switch(loaded.model)
        self._sees_prompt = sees_whole_prompt(loaded.model)
        self._text_id = int(getattr(loaded.model.config.get_text_config(), "pad_token_id", None) or 0)
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self._pool_size = PoolSize(max(2, capacity.kv_tokens // self.page_tokens))
        self.forget()

    def forget(self) -> None:
        """Replace the KV cache by an empty one. No sequence may be running."""
        idle = self.capacity.idle_tokens
        size, pages = self.page_tokens, self._pool_size.pages
        self.prefix_cache = PrefixCache(pages, page_tokens=size, max_idle=None if idle is None else idle // size)
        pads = self._recorder is not None
        slots = self.capacity.sequences + pads
        checkpoints = _MAX_CHECKPOINTS if self._has_state else 0
        self._pool = CachePool(pages, size, slots=slots, checkpoints=checkpoints, pads=pads)
        self.graphs = self._new_graphs(pages)
        self._free_slots = list(reversed(range(pads, slots)))
        self._checkpoints = StateCheckpoints(range(slots, slots + checkpoints))

    def _new_graphs(self, pages: int) -> DecodeGraphs | None:
        if self._recorder is None:
            return None
        context = self.loaded.context_length
        longest = pages if context is None else min(pages, self.prefix_cache.needed(context))
        return DecodeGraphs(
            self.loaded.model, self._pool, self._recorder, sequences=self.capacity.sequences, pages=longest
        )

    @property
    def is_busy(self) -> bool:
        """True if any sequence is waiting or running."""
        return bool(self.waiting or self.running)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache has room for now."""
        return self.prefix_cache.count * self.page_tokens

    @property
    def max_sequence_tokens(self) -> int:
        """Maximum tokens of one sequence, if it has the whole KV cache, and that has its planned size."""
        return self._pool_size.planned * self.page_tokens

    def sequence(self, key: Any, request: Request, processors: Sequence[Any]) -> SequenceState:
        """Return a sequence for a request, without queueing it.

        Args:
            processors: Logits processors for this answer only, applied after those of its structure.
        """
        all_processors = [*structure_processors(request, self.loaded.tokenizer), *processors]
        answer = Answer(self.loaded.tokenizer, request)
        ids = list(request.prompt.ids)
        rope_length = self._rope_length(len(ids))
        checkpoints = checkpoint_positions(ids, request.eos_token_ids) if self._has_state else ()
        return SequenceState(
            key,
            answer,
            self.samplers.make(request, all_processors),
            ids,
            rope_length=rope_length,
            checkpoints=checkpoints,
            media=self._media(request),
            text_id=self._text_id,
        )

    def _media(self, request: Request) -> SequenceMedia | None:
        prompt, sees_prompt = request.prompt, self._sees_prompt
        if not (prompt.media or sees_prompt):
            return None
        return SequenceMedia(prompt.media, len(prompt), image_encoder(self.loaded), sees_prompt=sees_prompt)

    def takes(self, request: Request) -> bool:
        """Return False for a request that may outgrow its RoPE in a way that only `model.generate` follows."""
        longest = len(request.prompt) + request.budget
        if self._rope_switch is not None and not begins_again_at_switch(self.loaded.model):
            return len(request.prompt) > self._rope_switch or longest <= self._rope_switch
        limit = dynamic_rope_limit(self.loaded.model)
        return limit is None or longest <= limit

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
        self._begin_again_at_switch()
        events = self._admit()
        parts = self._parts()
        if not parts:
            return events
        segments = [sequence.segment(count) for sequence, count in parts]
        logits = self._or_shrink(lambda: self._forward(segments))
        if logits is None:
            return events
        ready: list[tuple[SequenceState, int]] = []
        for row, (sequence, count) in enumerate(parts):
            start = sequence.computed
            sequence.computed += count
            if not sequence.answer.token_ids:
                self.prefilled_tokens += count
            if sequence.computed // self.page_tokens > start // self.page_tokens:
                self._remember(sequence, start=start)
            if count > 1 or sequence.computed in sequence.checkpoints or sequence.computed % _CHECKPOINT_TOKENS == 0:
                self._keep_state(sequence)
            if sequence.computed == len(sequence.ids):
                ready.append((sequence, row))
        chosen = self._or_shrink(lambda: self._choose(ready, logits))
        return events if chosen is None else events + self._take(ready, *chosen)

    def _forward(self, segments: list[Segment]) -> "Tensor":
        """Return the logits [sequences, vocabulary] after the last token of each segment."""
        logits = self.graphs.run(segments) if self.graphs is not None else None
        if logits is not None:
            return logits
        return forward(self.loaded.model, lay_out(segments, page_tokens=self.page_tokens), self._pool)

    def _or_shrink(self, compute: Callable[[], T]) -> T | None:
        """Return the result of a part of a pass; None if memory ran out, and the sequences wait for a smaller cache."""
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            half = self._pool_size.half
            fitting = [s for s in self.running if self.prefix_cache.needed(s.max_tokens) <= half]
            if not is_out_of_memory(error) or half == self._pool_size.pages or not fitting:
                raise
        self.shrink()  # outside of the except clause: the traceback holds the tensors of the pass
        return None

    def shrink(self) -> None:
        """Halve the KV cache after memory ran out. Running sequences wait, and are computed again with the same text.

        Nothing of the old cache is copied, since that would need memory.
        """
        for sequence in reversed(self.running):
            sequence.pages, sequence.computed = [], 0
            self.waiting.appendleft(sequence)
        self.running.clear()
        self._pool_size.halve()
        self.forget()
        release_memory()

    def _rope_length(self, tokens: int) -> int:
        """Return the length for which the RoPE of a sequence of `tokens` is computed; 0 if that is its own length."""
        switch = self._rope_switch
        return switch + 1 if switch is not None and tokens > switch else 0

    def _begin_again_at_switch(self) -> None:
        """Make the sequences that have reached the switch of their RoPE compute all their tokens again."""
        for sequence in [s for s in self.running if self._rope_length(len(s.ids)) != s.rope_length]:
            self._leave(sequence)
            sequence.rope_length = self._rope_length(len(sequence.ids))
            self.waiting.appendleft(sequence)

    def _choose(
        self, ready: list[tuple[SequenceState, int]], logits: "Tensor"
    ) -> tuple[list[int | LlmctlError], list[TokenLogprob | None]]:
        """Return the next token of every sequence in `ready`, which has (sequence, row), and its log-probability."""
        together = not self.samplers.on_cpu
        choices = [Choice(one.sampler, one.ids, row, one.answer.request.logprobs) for one, row in ready]
        tokens = next_tokens(logits, choices, together=together) if choices else []
        return tokens, logprobs_of(logits, choices, tokens, together=together)

    def _take(
        self,
        ready: list[tuple[SequenceState, int]],
        tokens: list[int | LlmctlError],
        logprobs: list[TokenLogprob | None],
    ) -> list[Event]:
        """Add a token to every sequence in `ready`, and return what follows from that."""
        events = []
        for (sequence, _), token, logprob in zip(ready, tokens, logprobs, strict=True):
            if isinstance(token, LlmctlError):
                self._leave(sequence)
                events.append(Event(sequence.key, end=token))
                continue
            pieces = sequence.answer.take(token, logprob)
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
        if self.waiting and not self.running and self._pool_size.grow():
            self.forget()
        while self.waiting and len(self.running) < self.capacity.sequences:
            sequence = self.waiting[0]
            if self.prefix_cache.needed(sequence.max_tokens) > self.prefix_cache.count:
                refused.append(Event(self.waiting.popleft().key, end=self._too_long(sequence.max_tokens)))
                continue
            shared, checkpoint = self._shared_prefix(sequence)
            wanted = self.prefix_cache.needed(len(sequence.ids) + 1) - len(shared.pages)
            # leave one free page for each running sequence, which may need it in the next pass
            if self.running and wanted + len(self.running) > self.prefix_cache.free:
                self.prefix_cache.release(shared.held)
                break
            self._begin(sequence, shared, checkpoint)
            self.running.append(self.waiting.popleft())
        return refused

    def _shared_prefix(self, sequence: SequenceState) -> tuple[SharedPrefix, Checkpoint | None]:
        """Return the cached pages of a sequence's prefix, which are now held, and the state that belongs to them."""
        ids, salt = sequence.cache_ids(), sequence.cache_salt
        if not self._has_state:
            return self.prefix_cache.share(ids, salt=salt), None
        for checkpoint in self._checkpoints.find(ids[:-1], salt=salt):
            shared = self.prefix_cache.share(ids[: checkpoint.tokens + 1], salt=salt)
            if shared.tokens == checkpoint.tokens:
                return shared, checkpoint
            self.prefix_cache.release(shared.held)
        return SharedPrefix(0, []), None

    def _begin(self, sequence: SequenceState, shared: SharedPrefix, checkpoint: Checkpoint | None) -> None:
        """Give a sequence a slot, the cached pages of its prefix, and the state that belongs to them."""
        sequence.slot = self._free_slots.pop()
        sequence.pages, sequence.computed = shared.pages, len(shared.pages) * self.page_tokens
        if shared.partial is not None:
            page = self.prefix_cache.take()
            if page is not None:
                self._pool.copy_page(shared.partial, page, shared.partial_tokens)
                sequence.pages.append(page)
                sequence.computed += shared.partial_tokens
            self.prefix_cache.release([shared.partial])
        if checkpoint is None:
            return
        if sequence.computed == checkpoint.tokens:
            self._pool.copy_state(checkpoint.slot, sequence.slot)
        else:  # no page was free for the last tokens
            self.prefix_cache.release(sequence.pages)
            sequence.pages, sequence.computed = [], 0

    def _parts(self) -> list[tuple[SequenceState, int]]:
        """Return the sequences of the next pass with their token counts, after taking pages for them.

        Decoding sequences come first, with one token each; prompts fill the rest of the pass.
        """
        left = max(self.capacity.pass_tokens, len(self.running))
        parts = []
        for sequence in sorted(self.running, key=lambda s: len(s.ids) - s.computed > 1):
            count = min(sequence.tokens_to_checkpoint, left)
            if count and sequence.media is not None:
                count = sequence.media.uncut(sequence.computed, count)
            if count and sequence in self.running and self._take_pages(sequence, sequence.computed + count):
                parts.append((sequence, count))
                left = max(0, left - count)
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
        if sequence.computed % self.page_tokens:
            self._remember(sequence, start=sequence.computed, include_partial=True)
        self._keep_state(sequence)
        self.prefix_cache.release(sequence.pages)
        self._free_slots.append(sequence.slot)
        sequence.pages, sequence.computed = [], 0

    def _keep_state(self, sequence: SequenceState) -> None:
        """Keep a copy of the recurrent state of a sequence, if it has one."""
        if not self._has_state or not sequence.computed:
            return
        if not len(self._checkpoints):
            size = self._pool.state_bytes(sequence.slot)
            self._checkpoints.limit(_CHECKPOINT_BYTES // size if size else _MAX_CHECKPOINTS)
        slot = self._checkpoints.keep(sequence.cache_ids(sequence.computed), salt=sequence.cache_salt)
        if slot is not None:
            self._pool.copy_state(sequence.slot, slot)

    def _remember(self, sequence: SequenceState, *, start: int, include_partial: bool = False) -> None:
        computed = sequence.cache_ids(sequence.computed)
        self.prefix_cache.remember(
            sequence.pages, computed, start=start, include_partial=include_partial, salt=sequence.cache_salt
        )

    def _too_long(self, tokens: int) -> MachineError:
        return MachineError(
            f"prompt and answer may have {tokens} tokens, but the KV cache has memory for only {self.kv_tokens}",
            hint="lower --max-new-tokens, or shorten the prompt",
        )
