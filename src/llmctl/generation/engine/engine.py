"""Many answers at once: what is new of every sequence goes through the model together, pass by pass.

A sequence enters as soon as there is room for its prompt, and leaves as soon as it ends (continuous batching: Orca,
OSDI 2022; paged keys and values: vLLM, arXiv:2309.06180). When the pool runs out, the sequence that came last gives its
pages up and is computed again later: its text is the same.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError
from llmctl.generation.answer import Answer
from llmctl.generation.completion import Completion
from llmctl.generation.engine.kv_pages import PAGE_TOKENS, Pages, Shared
from llmctl.generation.engine.packed import Pool, Segment, forward, lay_out
from llmctl.generation.engine.sampler import KNOWN, Chooser, Choosers
from llmctl.generation.failures import explained
from llmctl.generation.logprobs import TokenLogprob, token_logprob
from llmctl.generation.request import Request
from llmctl.generation.structured.constraint import processors as structure_processors

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.loading.model import LoadedModel


@dataclass(frozen=True)
class Size:
    """How much happens at once.

    Attributes:
        sequences: At most so many at a time.
        pass_tokens: At most so many tokens in one pass, prompts and answers together.
        pool_tokens: There is room for the keys and values of so many tokens.
        idle_tokens: Of so many they are kept for others that begin alike, when nobody uses them; None for all there
            is room for.
    """

    sequences: int
    pass_tokens: int
    pool_tokens: int
    idle_tokens: int | None = None


@dataclass
class _Sequence:
    """One answer in the making."""

    key: Any
    answer: Answer
    chooser: Chooser
    ids: list[int]
    pages: list[int] = field(default_factory=list)
    computed: int = 0  # so many of its tokens have their keys and values in the pool


@dataclass(frozen=True)
class Event:
    """Something new of one sequence: text that can be shown, and the completion or the error once it has ended."""

    key: Any
    text: str
    end: Completion | LlmctlError | None = None


class Engine:
    """Generates answers to many requests. Its state: the sequences under way and those that wait.

    Args:
        loaded: What `load` returned.
        size: How much happens at once.
    """

    def __init__(self, loaded: "LoadedModel", size: Size) -> None:
        self.loaded, self.size = loaded, size
        most_idle = None if size.idle_tokens is None else size.idle_tokens // PAGE_TOKENS
        self.pages = Pages(max(2, size.pool_tokens // PAGE_TOKENS), most_idle=most_idle)
        self.prefilled_tokens = 0  # so many were computed for prompts; those shared with another prompt are not
        self.generated_tokens = 0
        self._pool = Pool(self.pages.count, PAGE_TOKENS)
        self._choosers = Choosers(loaded.model)
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []

    @staticmethod
    def can(request: Request) -> bool:
        """Whether the engine understands every argument of a request."""
        return set(request.arguments) <= KNOWN

    def run(self, requests: Iterable[tuple[Any, Request]]) -> Iterator[tuple[Any, Completion | LlmctlError]]:
        """Answers in the order in which they finish. Requests are taken as room becomes free.

        Closing the iterator drops what is under way.
        """
        source = iter(requests)
        try:
            while True:
                while self.has_room and (item := next(source, None)) is not None:
                    self.add(*item)
                if not self.is_busy:
                    return
                for event in self.step():
                    if event.end is not None:
                        yield event.key, event.end
        finally:
            self.drop_all()

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    @property
    def has_room(self) -> bool:
        """Whether another request would not wait long."""
        return len(self._waiting) + len(self._running) < self.size.sequences

    def add(self, key: Any, request: Request, processors: Sequence[Any] = ()) -> None:
        """Take a request. `processors` are logits processors of this answer alone, after those of its structure."""
        answer = Answer(self.loaded.tokenizer, request)
        own = [*structure_processors(request, self.loaded.tokenizer), *processors]
        self._waiting.append(_Sequence(key, answer, self._choosers.make(request, own), list(request.ids)))

    def cancel(self, key: Any) -> None:
        """Nobody waits for this answer any more."""
        self._waiting = deque(s for s in self._waiting if s.key != key)
        for sequence in [s for s in self._running if s.key == key]:
            self._leave(sequence)

    def end(self, key: Any) -> tuple[str, Completion] | None:
        """End an answer where it is: its last text, and all of it. None where there is none of that key."""
        found = next((s for s in [*self._running, *self._waiting] if s.key == key), None)
        if found is None:
            return None
        self.cancel(key)
        found.answer.cancel()
        return found.answer.finish(), found.answer.completion()

    def drop_all(self) -> None:
        """Let go of everything under way. Beginnings stay known."""
        self._waiting.clear()
        for sequence in list(self._running):
            self._leave(sequence)

    def step(self) -> list[Event]:
        """One pass through the model, and what came of it.

        Raises:
            MachineError: memory ran out.
        """
        events = self._admit()
        parts = self._parts()
        if not parts:
            return events
        layout = lay_out(
            [Segment(s.ids[s.computed : s.computed + count], s.computed, s.pages) for s, count in parts],
            page_tokens=PAGE_TOKENS,
        )
        try:
            logits = forward(self.loaded.model, layout, self._pool)
        except Exception as error:
            raise explained(error, self.loaded) from error
        ready: list[tuple[_Sequence, int]] = []
        for row, (sequence, count) in enumerate(parts):
            start = sequence.computed
            sequence.computed += count
            if not sequence.answer.token_ids:
                self.prefilled_tokens += count
            if sequence.computed // PAGE_TOKENS > start // PAGE_TOKENS:
                self.pages.remember(sequence.pages, sequence.ids[: sequence.computed], start=start)
            if sequence.computed == len(sequence.ids):
                ready.append((sequence, row))
        return events + self._choose(ready, logits)

    def _choose(self, ready: list[tuple[_Sequence, int]], logits: "Tensor") -> list[Event]:
        """The next token of every sequence whose tokens have all been read."""
        likeliest: list[int] = logits.argmax(-1).tolist()
        events = []
        for sequence, row in ready:
            plain = sequence.chooser.is_plain
            try:
                token = likeliest[row] if plain else sequence.chooser.choose(sequence.ids, logits[row].float())
            except LlmctlError as error:  # a structure that got too complex
                self._leave(sequence)
                events.append(Event(sequence.key, "", error))
                continue
            text = sequence.answer.take(token, _logprob(sequence.answer.request, logits[row], token))
            self.generated_tokens += 1
            sequence.ids.append(token)
            if sequence.answer.finish_reason is not None:
                text += sequence.answer.finish()
                self._leave(sequence)
                events.append(Event(sequence.key, text, sequence.answer.completion()))
            elif text:
                events.append(Event(sequence.key, text))
        return events

    # -- room

    def _admit(self) -> list[Event]:
        """Let those that wait in while their prompts have room; returns what can never have any."""
        refused = []
        while self._waiting and len(self._running) < self.size.sequences:
            sequence = self._waiting[0]
            most = len(sequence.answer.request.ids) + sequence.answer.request.budget
            if self.pages.needed(most) > self.pages.count:
                refused.append(Event(self._waiting.popleft().key, "", self._too_long(most)))
                continue
            shared = self.pages.share(sequence.ids)
            wanted = self.pages.needed(len(sequence.ids) + 1) - len(shared.pages)
            if self._running and wanted + len(self._running) > self.pages.free:  # each running one may want a page next
                self.pages.release(shared.held)
                break
            self._begin(sequence, shared)
            self._running.append(self._waiting.popleft())
        return refused

    def _begin(self, sequence: _Sequence, shared: Shared) -> None:
        """Let a sequence begin with what is known of its beginning."""
        sequence.pages, sequence.computed = shared.pages, len(shared.pages) * PAGE_TOKENS
        if shared.partial is None:
            return
        page = self.pages.take()
        if page is not None:
            self._pool.copy(shared.partial, page, shared.partial_tokens)
            sequence.pages.append(page)
            sequence.computed += shared.partial_tokens
        self.pages.release([shared.partial])

    def _parts(self) -> list[tuple[_Sequence, int]]:
        """Which sequences go through the next pass, and how many tokens of each; their pages are taken.

        Those that decode come first: one token each. What is left of the pass is filled with prompts.
        """
        left = max(self.size.pass_tokens, len(self._running))
        parts = []
        for sequence in sorted(self._running, key=lambda s: len(s.ids) - s.computed > 1):
            count = min(len(sequence.ids) - sequence.computed, left)
            if count and sequence in self._running and self._take_pages(sequence, sequence.computed + count):
                parts.append((sequence, count))
                left -= count
        return [part for part in parts if part[0] in self._running]

    def _take_pages(self, sequence: _Sequence, tokens: int) -> bool:
        """Give a sequence pages for so many tokens, at the cost of those that came last; False if that is itself."""
        while len(sequence.pages) < self.pages.needed(tokens):
            page = self.pages.take()
            if page is not None:
                sequence.pages.append(page)
                continue
            victim = self._running[-1]
            self._leave(victim)
            self._waiting.appendleft(victim)
            if victim is sequence:
                return False
        return True

    def _leave(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        if sequence.computed % PAGE_TOKENS:
            self.pages.remember(
                sequence.pages, sequence.ids[: sequence.computed], start=sequence.computed, last_too=True
            )
        self.pages.release(sequence.pages)
        sequence.pages, sequence.computed = [], 0

    def _too_long(self, tokens: int) -> MachineError:
        room = self.pages.count * PAGE_TOKENS
        return MachineError(
            f"prompt and answer may take {tokens} tokens, there is memory for the keys and values of {room}",
            hint="lower --max-new-tokens, or shorten the prompt",
        )


def _logprob(request: Request, logits: "Tensor", token: int) -> TokenLogprob | None:
    """What the model thought of a token, where the request asks for it: logits [vocabulary]."""
    return None if request.logprobs is None else token_logprob(logits, token, request.logprobs)
