"""Tokens as they come: one worker thread generates, the caller iterates.

`stream` yields a `Chunk` for every piece of text that is safe to show; the last one carries the `Completion`.
`generate` is a loop over it. Both are the library's and the command line's only way to generate one answer.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.cpu.program import compiled
from llmctl.errors import LlmctlError, UserError
from llmctl.generation.answer import Answer
from llmctl.generation.completion import Chunk, Completion, FinishReason
from llmctl.generation.decoding_stats import Gauge
from llmctl.generation.detokenizer import TextAssembler
from llmctl.generation.draft import draft_arguments
from llmctl.generation.engine import Engine, engine_size
from llmctl.generation.engine.kv_pages import PAGE_TOKENS
from llmctl.generation.failures import explained
from llmctl.generation.logprobs import RawLogits, TokenLogprob, token_logprob
from llmctl.generation.prompt import Messages, encode_prompt
from llmctl.generation.request import Request, generation_config, make_request
from llmctl.generation.scoring import sequence_logprobs
from llmctl.generation.structured.constraint import processors
from llmctl.loading.transformers_compat import quiet_libraries

if TYPE_CHECKING:
    from llmctl.generation.chat.kept_cache import KeptCache
    from llmctl.loading.model import LoadedModel


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
    yield from stream_request(loaded, make_request(loaded, ids, seed=seed, max_new_tokens=max_new_tokens))


def stream_request(
    loaded: "LoadedModel", request: Request, *, reuse: "KeptCache | None" = None, own: Sequence[Any] = ()
) -> Generator[Chunk, None, None]:
    """`stream` for a request that is made already.

    Args:
        loaded: What `load` returned.
        request: What is to be generated.
        reuse: Keys and values of earlier turns. They are used, and those of this turn are kept in it. Beams use none.
        own: Logits processors of this answer alone, after that of its structure.
    """
    if request.arguments.get("num_beams", 1) > 1:
        yield _beams(loaded, request, own)
        return
    job = (_EngineJob if _is_for_engine(loaded, request) else _ModelJob)(loaded, request, reuse=reuse, own=own)
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


class _Job:
    """One answer in the making in its own thread. Its state: what is ready to be shown, and whether it is to end."""

    def __init__(
        self, loaded: "LoadedModel", request: Request, *, reuse: "KeptCache | None", own: Sequence[Any]
    ) -> None:
        self.loaded, self.request, self.reuse, self.own = loaded, request, reuse, own
        self.cancelled = threading.Event()
        self.ready: queue.SimpleQueue[Chunk | BaseException] = queue.SimpleQueue()

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
            self._generate()
        except BaseException as error:  # noqa: BLE001 (it is raised again in the caller's thread)
            self.ready.put(explained(error, self.loaded))

    def _generate(self) -> None:
        """Fill `ready`; the last chunk has the completion."""
        raise NotImplementedError


class _ModelJob(_Job):
    """One call of `model.generate`. Its state: the answer so far."""

    def __init__(
        self, loaded: "LoadedModel", request: Request, *, reuse: "KeptCache | None", own: Sequence[Any]
    ) -> None:
        super().__init__(loaded, request, reuse=reuse, own=own)
        self.answer = Answer(loaded.tokenizer, request)
        self._raw = RawLogits(loaded.model) if request.logprobs is not None and _is_plain(loaded, request) else None

    def _generate(self) -> None:
        ids = list(self.request.ids)
        more = self._kept(ids)
        gauge = Gauge(
            self.loaded, self.request, prefilled_tokens=self.reuse.prefilled_tokens if self.reuse else len(ids)
        )
        with gauge.watching(), self._raw or nullcontext():
            _run_generate(self.loaded, self.request, self._on_tokens, self.own, **more)
        gains = gauge.gains(len(self.answer.token_ids))
        if self.reuse:
            self.reuse.keep([*ids, *self.answer.token_ids])
        tail = self.answer.finish()
        if self._raw is None:
            self.answer.logprobs = list(_read_once_more(self.loaded, self.request, self.answer.token_ids) or ())
        self.ready.put(Chunk(tail, self.answer.completion(gains=gains)))

    def _kept(self, ids: list[int]) -> dict[str, Any]:
        """The cache of earlier turns, where it can be used.

        Only a dynamic one can be cut back to what two turns have in common. Assisted generation computes the whole
        prompt again on top of a filled cache, and its text is then wrong (transformers 5.18 to 5.24,
        `_assisted_decoding`: no slicing in the first iteration).
        """
        if self.reuse is None:
            return {}
        proposing = self.loaded.draft is not None or "prompt_lookup_num_tokens" in self.request.arguments
        if proposing or "cache_implementation" in self.request.arguments:
            self.reuse.pass_over(ids)
            return {}
        return self.reuse.arguments_for(self.loaded.model, ids)

    def _on_tokens(self, tokens: list[int]) -> bool:
        """Take the tokens of one pass; True when generation is over."""
        done = any(self._on_token(token) for token in tokens)
        self.answer.end_pass()
        return done

    def _on_token(self, token: int) -> bool:
        """Take the newest token; True when generation is over."""
        if self.answer.finish_reason is None:
            piece = self.answer.take(token, self._logprob(token))
            if piece:
                self.ready.put(Chunk(piece))
            if self.cancelled.is_set():
                self.answer.cancel()
        return self.answer.finish_reason is not None

    def _logprob(self, token: int) -> TokenLogprob | None:
        return token_logprob(self._raw.take(), token, self.request.logprobs or 0) if self._raw else None


class _EngineJob(_Job):
    """The same by the engine, for a model that is one program: nothing of `model.generate` is between two tokens."""

    def _generate(self) -> None:
        engine = self._engine()
        before = engine.prefilled_tokens
        engine.add(self, self.request, self.own)
        try:
            while not self._step(engine, before):
                pass
        except BaseException:
            if self.reuse:
                self.reuse.forget()
            raise

    def _step(self, engine: Engine, prefilled_before: int) -> bool:
        """One pass; True when the answer has ended."""
        events = engine.step()
        if self.reuse:  # before the answer is told of: it may end with its first token
            self.reuse.prefilled_tokens = engine.prefilled_tokens - prefilled_before
        for event in events:
            if isinstance(event.end, LlmctlError):
                raise event.end
            if event.text or event.end is not None:
                self.ready.put(Chunk(event.text, event.end))
            if event.end is not None:
                return True
        if self.cancelled.is_set() and (ended := engine.end(self)) is not None:
            self.ready.put(Chunk(*ended))
            return True
        return False

    def _engine(self) -> Engine:
        if self.reuse:
            return self.reuse.engine_for(self.loaded)
        size = engine_size(self.loaded, sequences=1)
        return Engine(self.loaded, replace(size, pool_tokens=len(self.request.ids) + self.request.budget + PAGE_TOKENS))


def _is_for_engine(loaded: "LoadedModel", request: Request) -> bool:
    """Whether the model is one program for the kernels, and the engine understands all that is asked for."""
    return compiled(loaded.model) is not None and loaded.draft is None and Engine.can(request)


def _run_generate(
    loaded: "LoadedModel",
    request: Request,
    on_tokens: Callable[[list[int]], bool] | None,
    own: Sequence[Any],
    **more: Any,
) -> Any:
    """`model.generate` with a criterion that sees every token as it is chosen: one a step, several with a draft."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, set_seed

    class EachToken(StoppingCriteria):
        seen = len(request.ids)

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            new, self.seen = input_ids[0, self.seen :].tolist(), input_ids.shape[1]
            done = on_tokens is not None and on_tokens(new)
            return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)

    set_seed(request.seed)
    inputs = torch.tensor([request.ids], dtype=torch.long, device=loaded.model.device)
    with quiet_libraries() if loaded.draft else nullcontext():  # a draft makes transformers warn of its own habits
        return loaded.model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=generation_config(request.arguments),
            logits_processor=LogitsProcessorList([*processors(request, loaded.tokenizer), *own]),
            stopping_criteria=StoppingCriteriaList([EachToken()]),
            **draft_arguments(loaded, request),
            **more,
        )


def _beams(loaded: "LoadedModel", request: Request, own: Sequence[Any]) -> Chunk:
    """Beam search: no token is final before the end, so there is nothing to stream."""
    started, gauge = time.perf_counter(), Gauge(loaded, request)
    try:
        with gauge.watching():
            output = _run_generate(loaded, request, None, own)
    except Exception as error:
        raise explained(error, loaded) from error
    seconds = time.perf_counter() - started
    token_ids = [int(token) for token in output[0, len(request.ids) :]]
    ended = next((n for n, token in enumerate(token_ids) if token in request.eos_token_ids), None)
    token_ids = token_ids if ended is None else token_ids[: ended + 1]
    text = TextAssembler(loaded.tokenizer, request.stop_strings)
    for token in token_ids if ended is None else token_ids[:-1]:
        text.add(token)
    text.finish()
    finish: FinishReason = "stop_string" if text.stopped_by else "length" if ended is None else "stop"
    completion = Completion(
        text=text.shown,
        token_ids=tuple(token_ids),
        finish_reason=finish,
        stop_string=text.stopped_by,
        prompt_token_count=len(request.ids),
        seed=request.seed,
        first_token_seconds=seconds,
        seconds=seconds,
        logprobs=_read_once_more(loaded, request, token_ids),
        gains=gauge.gains(len(token_ids)),
        prompt_ids=request.ids,
    )
    return Chunk(text.shown, completion)


def _is_plain(loaded: "LoadedModel", request: Request) -> bool:
    """Whether every token has a pass of its own, in Python: no draft, no proposals, nothing compiled."""
    faster = {"prompt_lookup_num_tokens", "compile_config", "cache_implementation"} & request.arguments.keys()
    return loaded.draft is None and not faster


def _read_once_more(loaded: "LoadedModel", request: Request, token_ids: list[int]) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities of a finished answer, for ways of generating in which a token has no pass of its own."""
    if request.logprobs is None:
        return None
    return sequence_logprobs(loaded, [*request.ids, *token_ids], start=len(request.ids), top=request.logprobs)


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
