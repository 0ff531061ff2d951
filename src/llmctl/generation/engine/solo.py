"""Requests that cannot be packed: `model.generate` in a separate thread, whose passes the engine takes one by one."""

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError
from llmctl.generation.answer import Answer
from llmctl.generation.completion import Completion
from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.decoding_stats import DecodingMeter
from llmctl.generation.logprobs import RawLogits
from llmctl.generation.pieces import Piece
from llmctl.generation.request import Request, generation_config
from llmctl.generation.sequence_logprobs import sequence_logprobs
from llmctl.generation.structured.constraint import processors as structure_processors
from llmctl.transformers_compat import quiet_libraries

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

# With these arguments, not every token has its own forward pass that Python code can observe.
_WITHOUT_PASS_PER_TOKEN = {"prompt_lookup_num_tokens", "compile_config", "cache_implementation", "num_beams"}


@dataclass(frozen=True)
class SoloStep:
    """The result of one forward pass.

    Attributes:
        pieces: New pieces of the answer.
        prefilled: Prompt tokens that the pass computed.
        generated: Tokens that the pass generated.
        end: In the last step, the completion or the error of the request.
        failure: An exception that the request did not cause.
    """

    pieces: tuple[Piece, ...] = ()
    prefilled: int = 0
    generated: int = 0
    end: Completion | LlmctlError | None = None
    failure: BaseException | None = None


class SoloRun:
    """One call of `model.generate`. Its state: the thread, the answer so far, and the unread steps.

    Args:
        processors: Logits processors for this answer only, applied after those of its structure.
        cache: Keys and values of earlier calls. The call uses and updates it.
    """

    def __init__(
        self,
        key: Any,
        loaded: "LoadedModel",
        request: Request,
        processors: Sequence[Any],
        *,
        cache: ConversationCache | None = None,
    ) -> None:
        self.key, self._loaded, self._request, self._processors, self._cache = key, loaded, request, processors, cache
        self._prefilled = len(request.prompt)
        self._raw: RawLogits | None = None
        self._cancelled = threading.Event()
        self._steps: queue.SimpleQueue[SoloStep] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="llmctl-generate-alone", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def next_step(self) -> SoloStep:
        """Wait for the next pass and return its result."""
        return self._steps.get()

    def cancel(self) -> None:
        """Stop at the next token, and wait until the thread has ended."""
        self._cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._generate()
        except LlmctlError as error:
            self._steps.put(SoloStep(end=error))
        except BaseException as error:  # noqa: BLE001 (raised again in the engine's thread)
            self._steps.put(SoloStep(failure=error))

    def _generate(self) -> None:
        loaded, request = self._loaded, self._request
        self._answer = Answer(loaded.tokenizer, request)
        is_beam_search = request.arguments.get("num_beams", 1) > 1
        cache_arguments = {} if is_beam_search else self._cache_arguments()
        if request.logprobs is not None and loaded.draft is None:
            self._raw = None if _WITHOUT_PASS_PER_TOKEN & request.arguments.keys() else RawLogits(loaded.model)
        meter = DecodingMeter(loaded, request, prefilled_tokens=self._prefilled)
        with meter.measuring(), self._raw or nullcontext():
            output = _generate(
                loaded,
                request,
                self._on_beams if is_beam_search else self._on_tokens,
                self._processors,
                **cache_arguments,
            )
        if self._cache is not None and not is_beam_search:
            self._cache.keep(request.prompt.followed_by(self._answer.token_ids))
        if self._cancelled.is_set():
            return
        pieces = self._take_beams(output) if is_beam_search else []
        pieces += self._answer.finish()
        token_ids = self._answer.token_ids
        if request.logprobs is not None and self._raw is None:
            scored = sequence_logprobs(
                loaded, request.prompt.followed_by(token_ids), start=len(request.prompt), top=request.logprobs
            )
            self._answer.logprobs = list(scored)
        completion = self._answer.completion(decoding_stats=meter.stats(len(token_ids)))
        self._steps.put(SoloStep(tuple(pieces), generated=len(token_ids) if is_beam_search else 0, end=completion))

    def _cache_arguments(self) -> dict[str, Any]:
        """Return the arguments that pass the cache of earlier calls, if it can be used.

        Only a dynamic cache can be cropped to a common prefix. Assisted generation computes the whole prompt again and
        appends it to a filled cache, so its text is wrong (transformers 5.18 to 5.24, `_assisted_decoding`: no slicing
        in the first iteration).
        """
        if self._cache is None:
            return {}
        arguments = self._request.arguments
        proposing = self._loaded.draft is not None or "prompt_lookup_num_tokens" in arguments
        if proposing or "cache_implementation" in arguments:
            self._cache.forget()
            return {}
        cache_arguments = self._cache.arguments_for(self._loaded.model, self._request.prompt)
        self._prefilled = self._cache.prefilled_tokens
        return cache_arguments

    def _on_tokens(self, tokens: list[int]) -> bool:
        """Add the tokens of one pass to the answer. Return True if the answer has ended."""
        answer, before = self._answer, len(self._answer.token_ids)
        pieces: list[Piece] = []
        for token in tokens:
            if answer.finish_reason is None:
                raw = self._raw
                logprob = raw.logprob(token, self._request.logprobs or 0) if raw is not None else None
                pieces += answer.take(token, logprob)
        answer.end_pass()
        if self._cancelled.is_set():
            answer.cancel()
        prefilled = 0 if before else self._prefilled
        self._steps.put(SoloStep(tuple(pieces), prefilled=prefilled, generated=len(answer.token_ids) - before))
        return answer.finish_reason is not None

    def _on_beams(self, tokens: list[int]) -> bool:
        """Report a pass without text, since no token of a beam search is final. Return True if it was cancelled."""
        del tokens
        prefilled, self._prefilled = self._prefilled, 0
        self._steps.put(SoloStep(prefilled=prefilled))
        return self._cancelled.is_set()

    def _take_beams(self, output: list[int]) -> list[Piece]:
        """Add the tokens of the best beam to the answer and return their pieces."""
        pieces: list[Piece] = []
        for token in output[len(self._request.prompt) :]:
            pieces += self._answer.take(token)
            if self._answer.finish_reason is not None:
                break
        self._answer.end_pass()
        return pieces


def _generate(
    loaded: "LoadedModel",
    request: Request,
    on_tokens: Callable[[list[int]], bool],
    processors: Sequence[Any],
    **cache_arguments: Any,
) -> list[int]:
    """Call `model.generate` and return its ids. `on_tokens` gets the tokens of every pass and returns True to stop."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, set_seed

    class EachPass(StoppingCriteria):
        seen = len(request.prompt)

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            new, self.seen = input_ids[0, self.seen :].tolist(), input_ids.shape[1]
            done = on_tokens(new)
            return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)

    set_seed(request.seed)
    inputs = torch.tensor([request.prompt.ids], dtype=torch.long, device=loaded.model.device)
    with (
        quiet_libraries() if loaded.draft else nullcontext()
    ):  # with a draft, transformers warns about its own implementation
        output = loaded.model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=generation_config(request.arguments),
            logits_processor=LogitsProcessorList([*structure_processors(request, loaded.tokenizer), *processors]),
            stopping_criteria=StoppingCriteriaList([EachPass()]),
            **_draft_arguments(loaded, request),
            **cache_arguments,
        )
    return [int(token) for token in output[0]]


def _draft_arguments(loaded: "LoadedModel", request: Request) -> dict[str, Any]:
    """Return the arguments of `model.generate` with which the draft model proposes tokens.

    A draft is not used for an answer that may exceed the draft's context. With a different vocabulary, which
    transformers detects by its size, proposals are converted through text, which may take twice as many tokens
    (universal assisted generation, transformers' generation_strategies).
    """
    draft = loaded.draft
    if draft is None:
        return {}
    sizes = [model.config.get_text_config().vocab_size for model in (loaded.model, draft.model)]
    other_vocabulary = bool(sizes[0] != sizes[1])
    context = draft.context_length
    if context is not None and (2 if other_vocabulary else 1) * (len(request.prompt) + request.budget) > context:
        return {}
    arguments: dict[str, Any] = {"assistant_model": draft.model}
    if other_vocabulary:
        arguments |= {"tokenizer": loaded.tokenizer, "assistant_tokenizer": draft.tokenizer}
    return arguments
