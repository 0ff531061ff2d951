"""`POST /v1/completions`: continue a text."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llmctl.config import ChatSection
from llmctl.generation.completion import Completion
from llmctl.generation.logprobs import TokenLogprob, token_text
from llmctl.generation.pieces import text_of
from llmctl.generation.prompt import Prompt, encode_prompt
from llmctl.generation.prompt_length import check_length
from llmctl.generation.sequence_logprobs import sequence_logprobs
from llmctl.server.answering import ChoiceWriter, Submission, answer, finish_reason, json_logprob, usage
from llmctl.server.fields import Refused
from llmctl.server.http_errors import RequestError
from llmctl.server.schemas import MAX_TOKENS, MAX_TOP_LOGPROBS, Sampling, Text, TokenId

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.pending import AnswerUpdate
    from llmctl.server.registry import ModelRegistry

_MAX_PROMPTS = 128
_RAW = ChatSection(raw=True)
_Ids = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKENS)]


class CompletionBody(Sampling):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | _Ids
        | Annotated[list[Text], Field(min_length=1, max_length=_MAX_PROMPTS)]
        | Annotated[list[_Ids], Field(min_length=1, max_length=_MAX_PROMPTS)]
    ) = Field(description="A text, its token ids, or a list of several.")
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        16, description="Maximum tokens to generate; 0 with `echo` returns the prompt alone."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="Return the log-probability of each token, and this many alternatives."
    )
    echo: bool | None = Field(False, description="Return the prompt before the answer; not in a stream.")
    add_special_tokens: bool | None = Field(
        True, description="False omits the beginning-of-sequence token before a prompt in text."
    )
    suffix: Annotated[Literal[""] | None, Refused("models that fill in the middle take it in the prompt")] = None

    @model_validator(mode="after")
    def _echo_is_not_streamed(self) -> Self:
        if self.stream and self.echo:
            raise ValueError("echo cannot be streamed")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1; 0 is only allowed with echo")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list of texts or lists of token ids."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)  # type: ignore[arg-type]


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the route."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, body: CompletionBody) -> Response:
        registry.check_model(body.model)
        submission = await asyncio.to_thread(prepare_text, registry, body)
        echoes = await _echoes(registry, body, submission) if body.echo else None
        writer = _TextWriter(registry, body, echoes)
        if body.max_tokens == 0:
            choices = [writer.choice(index, None) for index in range(len(submission.requests))]
            return JSONResponse(writer.document(choices, usage=usage((), submission.prompt_tokens)))
        return await answer(request, registry, body, submission, writer)


def prepare_text(registry: "ModelRegistry", body: CompletionBody) -> Submission:
    """Return `n` requests for each prompt, in order."""
    if len(body.prompts) * (body.n or 1) > registry.worker.max_queue:
        raise RequestError(f"at most {registry.worker.max_queue} answers can be queued", param="prompt")
    model = registry.with_settings(body, max_tokens=body.max_tokens or 16, logprobs=body.logprobs)
    requests: list[Any] = []
    prompt_tokens = 0
    for prompt in body.prompts:
        encoded = _encode(registry, prompt, add_special_tokens=body.add_special_tokens is not False)
        prompt_tokens += len(encoded)
        answers = registry.requests(model, body, encoded)
        requests += [(request, registry.processors(body, request)) for request in answers]
    return Submission(requests, prompt_tokens)


def _encode(registry: "ModelRegistry", prompt: str | list[int], *, add_special_tokens: bool) -> Prompt:
    loaded = registry.loaded
    if isinstance(prompt, str) and add_special_tokens:
        return encode_prompt(loaded.tokenizer, prompt, _RAW, context_length=loaded.context_length)
    if isinstance(prompt, str):
        check_length(loaded.tokenizer, [prompt], loaded.context_length)
        prompt = list(loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if not prompt:
        raise RequestError("the prompt is empty", param="prompt")
    return Prompt(tuple(prompt), is_open=True)


@dataclass(frozen=True)
class _Echo:
    """A prompt to return before its answer.

    Attributes:
        ids: The token ids of the prompt.
        scores: The log-probabilities of all tokens after the first; empty unless requested.
    """

    ids: tuple[int, ...]
    scores: tuple[TokenLogprob, ...]


async def _echoes(registry: "ModelRegistry", body: CompletionBody, submission: Submission) -> list[_Echo]:
    """Return one echo per prompt."""
    echoes = []
    for request, _ in submission.requests[:: body.n or 1]:
        scores: tuple[TokenLogprob, ...] = ()
        if body.logprobs is not None and len(request.prompt) > 1:
            score = partial(sequence_logprobs, registry.loaded, request.prompt, start=1, top=body.logprobs)
            scores = await registry.worker.call(score)
        echoes.append(_Echo(request.prompt.ids, scores))
    return echoes


class _TextWriter(ChoiceWriter):
    """Writes the choices of a text completion."""

    def __init__(self, registry: "ModelRegistry", body: CompletionBody, echoes: list[_Echo] | None) -> None:
        super().__init__(registry, "text_completion", id_prefix="cmpl")
        self._echoes, self._answers_per_prompt = echoes, body.n or 1
        self._wants_logprobs = body.logprobs is not None

    def chunk_choices(self, update: "AnswerUpdate") -> Iterator[dict[str, Any]]:
        completion, text = update.completion, text_of(update.pieces)
        if text or completion is not None:
            yield {
                "index": update.index,
                "text": text,
                "logprobs": None if completion is None else self._logprobs(None, completion.logprobs or ()),
                "finish_reason": None if completion is None else finish_reason(completion),
                **({} if completion is None else {"seed": completion.seed}),
            }

    def choice(self, index: int, completion: Completion | None) -> dict[str, Any]:
        echo = self._echoes[index // self._answers_per_prompt] if self._echoes else None
        prompt = str(self.registry.loaded.tokenizer.decode(list(echo.ids))) if echo else ""
        return {
            "index": index,
            "text": prompt + (completion.text if completion else ""),
            "logprobs": self._logprobs(echo, (completion.logprobs if completion else None) or ()),
            "finish_reason": finish_reason(completion) if completion else "length",
            **({} if completion is None else {"seed": completion.seed}),
        }

    def _logprobs(self, echo: _Echo | None, generated: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Return parallel lists, as in OpenAI's older API. The first token of a prompt has no log-probability."""
        if not self._wants_logprobs:
            return None
        scored: list[TokenLogprob | None] = [None, *echo.scores, *generated] if echo else list(generated)
        ids = [*(echo.ids if echo else ()), *(token.id for token in generated)]
        texts = [self._token_text(token) for token in ids]
        return {
            "tokens": texts,
            "token_logprobs": [None if token is None else json_logprob(token.logprob) for token in scored],
            "top_logprobs": [None if token is None else self._top_logprobs(token) for token in scored],
            "text_offset": list(accumulate(map(len, texts), initial=0))[:-1],
        }

    def _top_logprobs(self, token: TokenLogprob) -> dict[str, float]:
        return {self._token_text(other.id): json_logprob(other.logprob) for other in token.top}

    def _token_text(self, token: int) -> str:
        return str(token_text(self.registry.loaded.tokenizer, token)["token"])
