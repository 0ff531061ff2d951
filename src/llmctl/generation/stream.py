"""Streaming generation: a worker thread steps an engine while the caller iterates.

`stream` yields a `Chunk` for every piece of text that is safe to show; the last one carries the `Completion`.
`generate` consumes it. The library and the command line generate single answers only through these two.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.completion import Chunk, Completion
from llmctl.generation.engine import Engine, engine_for_one
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.prompt import Messages, encode_prompt
from llmctl.generation.request import Request, answer_seed, make_request
from llmctl.loading.device_memory import release_memory

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel


def stream(
    loaded: "LoadedModel",
    prompt: "str | Messages",
    *,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    chat: ChatSection | None = None,
) -> Iterator[Chunk]:
    """Generate one answer, piece by piece: `chunk.text` is text of the answer, `chunk.reasoning` the model's reasoning.

    Args:
        prompt: A text, or messages of the form {"role": …, "content": …}.
        seed: Replaces the configuration's; without either, a new one is drawn, which `Completion.seed` has.
        max_new_tokens: Replaces the configuration's.
        chat: Replaces the configuration's chat section.

    Yields:
        Chunks; closing the iterator early stops the model at its next token.

    Raises:
        UserError: the prompt is empty or longer than the model's context.
        MachineError: memory ran out.
    """
    encoded = encode_prompt(
        loaded.tokenizer,
        prompt,
        chat or loaded.config.chat,
        context_length=loaded.context_length,
        processor=LazyImageProcessor(loaded),
    )
    yield from stream_request(loaded, make_request(loaded, encoded, seed=seed, max_new_tokens=max_new_tokens))


def stream_request(
    loaded: "LoadedModel", request: Request, *, engine: Engine | None = None, processors: Sequence[Any] = ()
) -> Generator[Chunk, None, None]:
    """Yield the chunks of the answer to a request, like `stream`.

    Args:
        engine: The engine of a conversation, which keeps keys and values between turns; by default, a new one.
        processors: Logits processors for this answer only, applied after those of its structure.
    """
    stepping = _Stepping(engine or engine_for_one(loaded, request), request, processors)
    thread = threading.Thread(target=stepping.run, name="llmctl-generate", daemon=True)
    thread.start()
    try:
        yield from stepping.chunks()
    finally:
        stepping.cancelled.set()
        thread.join()


def generate(
    loaded: "LoadedModel",
    prompt: "str | Messages",
    *,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    chat: ChatSection | None = None,
) -> Completion:
    """Generate one answer and return it when it is complete. Arguments and errors are those of `stream`."""
    completion = None
    for chunk in stream(loaded, prompt, seed=seed, max_new_tokens=max_new_tokens, chat=chat):
        completion = chunk.completion
    assert completion is not None, "the last chunk carries the completion"  # noqa: S101
    return completion


class _Stepping:
    """Steps an engine for one request, in a thread. Its state: the chunks that are ready, and the cancellation flag."""

    def __init__(self, engine: Engine, request: Request, processors: Sequence[Any]) -> None:
        self._engine, self._request, self._processors = engine, request, processors
        self.cancelled = threading.Event()
        self._ready: queue.SimpleQueue[Chunk | BaseException] = queue.SimpleQueue()

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks until the answer ends. Exceptions of the thread are raised here."""
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if item.completion is not None:
                return

    def run(self) -> None:
        """Step the engine to the end of the answer; pass any exception to `chunks`."""
        failure: BaseException | None = None
        try:
            self._step_to_the_end()
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            failure = error
        if failure is None:
            return
        if isinstance(failure, MachineError):
            release_memory(failure)
        self._engine.recover()
        self._engine.forget()
        self._ready.put(failure)

    def _step_to_the_end(self) -> None:
        engine = self._engine
        engine.add(self, self._request, self._processors)
        while not self.cancelled.is_set():
            for event in engine.step():
                if isinstance(event.end, LlmctlError):
                    raise event.end
                self._ready.put(Chunk(event.pieces, event.end))
                if event.end is not None:
                    return
        engine.cancel(self)


def generate_many(
    loaded: "LoadedModel", prompt: "str | Messages", *, count: int, seed: int | None = None
) -> Iterator[Iterator[Chunk]]:
    """Yield `count` answers to one prompt, one after the other, with the seeds seed, seed + 1, …

    Each equals the result of `stream` with its seed, so each can be repeated on its own.

    Raises:
        UserError: several answers are requested without sampling, so all would be the same.
    """
    first = answer_seed(loaded, seed)
    if count > 1 and not loaded.plan.generation_kwargs.get("do_sample"):
        raise UserError(
            f"without sampling, all {count} answers would be the same",
            hint="set a temperature: --temperature 0.8",
        )
    for number in range(count):
        yield stream(loaded, prompt, seed=(first + number) % 2**32)
