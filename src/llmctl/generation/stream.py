"""Tokens as they come: one worker thread generates, the caller iterates.

`stream` yields a `Chunk` for every piece of text that is safe to show; the last one carries the `Completion`.
`generate` is a loop over it. Both are the library's and the command line's only way to generate one answer.
"""

import queue
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.prompt import Messages, encode_prompt
from llmctl.generation.text import TextAssembler

if TYPE_CHECKING:
    from llmctl.generation.reuse import KeptCache
    from llmctl.loader import LoadedModel

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        token_ids: Every generated id, the ending one included.
        finish_reason: `stop` (an end-of-sequence token), `length` (max_new_tokens, or the context is full),
            `stop_string`, or `cancelled`.
        stop_string: Which one ended it, if one did.
        prompt_token_count: Tokens of the prompt.
        seed: What the random generators were seeded with.
        first_token_seconds: From the call to the first token: the prefill.
        seconds: From the call to the last token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str | None
    prompt_token_count: int
    seed: int
    first_token_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens per second after the first; None when there is only one."""
        decoding = self.seconds - self.first_token_seconds
        return (len(self.token_ids) - 1) / decoding if len(self.token_ids) > 1 and decoding > 0 else None


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        text: New text; it may be empty in the last chunk.
        completion: The whole answer, in the last chunk only.
    """

    text: str
    completion: Completion | None = None


def stream(
    loaded: "LoadedModel",
    prompt: "str | Messages",
    *,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    chat: ChatSection | None = None,
) -> Iterator[Chunk]:
    """Generate one answer, piece by piece.

    Args:
        loaded: What `load` returned.
        prompt: A text, or messages of the form {"role": …, "content": …}.
        seed: Instead of the configuration's.
        max_new_tokens: Instead of the configuration's.
        chat: Instead of the configuration's chat section.

    Yields:
        Chunks; closing the iterator early stops the model at its next token.

    Raises:
        UserError: the prompt is empty or longer than the model's context.
        MachineError: memory ran out.
    """
    ids = encode_prompt(loaded.tokenizer, prompt, chat or loaded.config.chat)
    yield from stream_ids(loaded, ids, seed=seed, max_new_tokens=max_new_tokens)


def stream_ids(
    loaded: "LoadedModel",
    ids: list[int],
    *,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    reuse: "KeptCache | None" = None,
) -> Generator[Chunk, None, None]:
    """`stream` for a prompt that is encoded already.

    Args:
        loaded: What `load` returned.
        ids: The prompt.
        seed: Instead of the configuration's.
        max_new_tokens: Instead of the configuration's.
        reuse: Keys and values of earlier turns. They are used, and those of this turn are kept in it. Beams use none.
    """
    budget = _budget(loaded, len(ids), max_new_tokens or loaded.config.generation.max_new_tokens)
    seed = loaded.plan.seed if seed is None else seed
    if loaded.config.generation.num_beams > 1:
        yield _beams(loaded, ids, seed=seed, budget=budget)
        return
    job = _Job(loaded, ids, seed=seed, budget=budget, reuse=reuse)
    worker = threading.Thread(target=job.run, name="llmctl-generate", daemon=True)
    worker.start()
    try:
        yield from job.chunks()
    finally:
        job.cancelled.set()
        worker.join()


def generate(
    loaded: "LoadedModel",
    prompt: "str | Messages",
    *,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    chat: ChatSection | None = None,
) -> Completion:
    """Generate one answer and return it whole. Arguments and errors are those of `stream`."""
    completion = None
    for chunk in stream(loaded, prompt, seed=seed, max_new_tokens=max_new_tokens, chat=chat):
        completion = chunk.completion
    assert completion is not None, "the last chunk carries the completion"  # noqa: S101
    return completion


def _budget(loaded: "LoadedModel", prompt_tokens: int, wanted: int) -> int:
    """How many tokens may be generated before the context is full."""
    context = loaded.context_length
    if context is None:
        return wanted
    if prompt_tokens >= context:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens, the context of {loaded.plan.source} holds {context}",
            hint="shorten the prompt, or take a model with a longer context",
            details={"prompt_tokens": prompt_tokens, "context_length": context},
        )
    return min(wanted, context - prompt_tokens)


class _Job:
    """One call of `model.generate` in its own thread. Its state: what has been generated so far."""

    def __init__(
        self, loaded: "LoadedModel", ids: list[int], *, seed: int, budget: int, reuse: "KeptCache | None" = None
    ) -> None:
        self.loaded, self.ids, self.seed, self.budget, self.reuse = loaded, ids, seed, budget, reuse
        self.cancelled = threading.Event()
        self.ready: queue.SimpleQueue[Chunk | BaseException] = queue.SimpleQueue()
        self.text = TextAssembler(loaded.tokenizer, loaded.config.generation.stop_strings)
        self.token_ids: list[int] = []
        self.finish: FinishReason | None = None
        self.started = time.perf_counter()
        self.first = self.last = self.started

    def chunks(self) -> Iterator[Chunk]:
        """What the thread produces, until it ends; its exceptions are raised here."""
        while True:
            item = self.ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if item.completion is not None:
                return

    def run(self) -> None:
        """The thread's body."""
        try:
            more = self.reuse.arguments_for(self.loaded.model, self.ids) if self.reuse else {}
            _run_generate(self.loaded, self.ids, self.seed, self.budget, self._on_token, **more)
            if self.reuse:
                self.reuse.keep([*self.ids, *self.token_ids])
            tail = self.text.finish()
            self.ready.put(Chunk(tail, self._completion()))
        except BaseException as error:  # noqa: BLE001 (it is raised again in the caller's thread)
            self.ready.put(_translate(error, self.loaded))

    def _on_token(self, token: int) -> bool:
        """Take the newest token; True when generation is over."""
        if self.finish is not None:
            return True
        self.last = time.perf_counter()
        if not self.token_ids:
            self.first = self.last
        self.token_ids.append(token)
        if token in self.loaded.eos_token_ids:
            self.finish = "stop"
        else:
            piece = self.text.add(token)
            if piece:
                self.ready.put(Chunk(piece))
            if self.text.stopped_by is not None:
                self.finish = "stop_string"
            elif len(self.token_ids) >= self.budget:
                self.finish = "length"
        if self.finish is None and self.cancelled.is_set():
            self.finish = "cancelled"
        return self.finish is not None

    def _completion(self) -> Completion:
        return Completion(
            text=self.text.shown,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish or "length",
            stop_string=self.text.stopped_by,
            prompt_token_count=len(self.ids),
            seed=self.seed,
            first_token_seconds=self.first - self.started,
            seconds=self.last - self.started,
        )


def _run_generate(loaded: "LoadedModel", ids: list[int], seed: int, budget: int, on_token: Any, **more: Any) -> Any:
    """`model.generate` with a criterion that sees every token as it is chosen."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList, set_seed

    class EachToken(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            done = on_token(int(input_ids[0, -1])) if on_token else False
            return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)

    set_seed(seed)
    inputs = torch.tensor([ids], dtype=torch.long, device=loaded.model.device)
    return loaded.model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=loaded.generation_config(max_new_tokens=budget),
        stopping_criteria=StoppingCriteriaList([EachToken()]),
        **more,
    )


def _beams(loaded: "LoadedModel", ids: list[int], *, seed: int, budget: int) -> Chunk:
    """Beam search: no token is final before the end, so there is nothing to stream."""
    started = time.perf_counter()
    try:
        output = _run_generate(loaded, ids, seed, budget, None)
    except Exception as error:
        raise _translate(error, loaded) from error
    seconds = time.perf_counter() - started
    token_ids = [int(token) for token in output[0, len(ids) :]]
    ended = next((n for n, token in enumerate(token_ids) if token in loaded.eos_token_ids), None)
    token_ids = token_ids if ended is None else token_ids[: ended + 1]
    text = TextAssembler(loaded.tokenizer, loaded.config.generation.stop_strings)
    for token in token_ids if ended is None else token_ids[:-1]:
        text.add(token)
    text.finish()
    finish: FinishReason = "stop_string" if text.stopped_by else "length" if ended is None else "stop"
    completion = Completion(text.shown, tuple(token_ids), finish, text.stopped_by, len(ids), seed, seconds, seconds)
    return Chunk(text.shown, completion)


def _translate(error: BaseException, loaded: "LoadedModel") -> BaseException:
    """What can go wrong while generating, for people: memory that runs out. The rest is as it was."""
    from llmctl.loader import is_out_of_memory, out_of_memory

    if not is_out_of_memory(error):
        return error
    return out_of_memory(loaded.plan, loaded.info, loaded.machine, loaded.config, doing="generating with")


def generate_many(
    loaded: "LoadedModel", prompt: "str | Messages", *, count: int, seed: int | None = None
) -> Iterator[Iterator[Chunk]]:
    """`count` answers to one prompt, one after the other, with the seeds seed, seed + 1, …

    Each is what `stream` gives for its seed, so any of them can be repeated alone.

    Raises:
        UserError: more than one answer is asked for and every one would be the same.
    """
    first = loaded.plan.seed if seed is None else seed
    if count > 1 and not loaded.plan.generation_kwargs.get("do_sample"):
        raise UserError(
            f"{count} answers without sampling would be {count} times the same",
            hint="set a temperature: --temperature 0.8",
        )
    for number in range(count):
        yield stream(loaded, prompt, seed=first + number)
