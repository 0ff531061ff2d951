"""`POST /v1/completions`: a text goes on."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.generation.completion import Completion
from llmctl.generation.logprobs import TokenLogprob, token_text
from llmctl.generation.prompt import encode_prompt
from llmctl.generation.scoring import sequence_logprobs
from llmctl.server.answering import Asking, Shape, answer, finish_reason, number, usage
from llmctl.server.http_errors import RequestError
from llmctl.server.schemas import CompletionBody

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from llmctl.server.registry import Served

_RAW = ChatSection(raw=True)


async def complete(http: "HttpRequest", served: "Served", body: CompletionBody) -> "Response":
    """Answer a request."""
    served.check_name(body.model)
    asking, prompt_tokens = await asyncio.to_thread(_asking, served, body)
    echoes = await _echoes(served, body, asking) if body.echo else None
    shape = _Plain(served, body, echoes)
    if body.max_tokens == 0:
        return _prompts_alone(shape, len(asking), prompt_tokens)
    return await answer(http, served, body, asking, shape, prompt_tokens=prompt_tokens)


def _asking(served: "Served", body: CompletionBody) -> tuple[Asking, int]:
    """The answers that a body asks for: `n` of each prompt, in order; and the tokens of the prompts."""
    if len(body.prompts) * (body.n or 1) > served.worker.max_queue:
        raise RequestError(f"more answers than the {served.worker.max_queue} that may wait", param="prompt")
    model = served.settings(body, max_tokens=body.max_tokens or 16, logprobs=body.logprobs)
    asking: list[Any] = []
    tokens = 0
    for prompt in body.prompts:
        ids = encode_prompt(served.loaded.tokenizer, prompt, _RAW) if isinstance(prompt, str) else prompt
        tokens += len(ids)
        asking += [(one, served.processors(body, len(ids))) for one in served.requests(model, body, ids)]
    return asking, tokens


@dataclass(frozen=True)
class _Echo:
    """A prompt that is given back.

    Attributes:
        ids: Its tokens.
        scores: What the model thought of each but the first, where that was asked for.
    """

    ids: tuple[int, ...]
    scores: tuple[TokenLogprob, ...]


async def _echoes(served: "Served", body: CompletionBody, asking: Asking) -> list[_Echo]:
    """The prompts, once each."""
    found = []
    for request, _ in asking[:: body.n or 1]:
        scores: tuple[TokenLogprob, ...] = ()
        if body.logprobs is not None and len(request.ids) > 1:
            score = partial(sequence_logprobs, served.loaded, request.ids, start=1, top=body.logprobs)
            scores = await served.worker.call(score)
        found.append(_Echo(request.ids, scores))
    return found


def _prompts_alone(shape: "_Plain", count: int, prompt_tokens: int) -> "Response":
    from starlette.responses import JSONResponse

    choices = [shape.choice(index, None) for index in range(count)]
    return JSONResponse(shape.document(choices, usage=usage((), prompt_tokens)))


class _Plain(Shape):
    """Choices with `text`."""

    def __init__(self, served: "Served", body: CompletionBody, echoes: list[_Echo] | None) -> None:
        super().__init__(served, "text_completion", prefix="cmpl")
        self._echoes, self._count, self._scored = echoes, body.n or 1, body.logprobs is not None

    def pieces(self, index: int, text: str, end: Completion | None) -> Iterator[dict[str, Any]]:
        if text or end is not None:
            reason = finish_reason(end) if end is not None else None
            logprobs = self._logprobs(None, end.logprobs or ()) if end is not None else None
            yield {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def choice(self, index: int, completion: Completion | None) -> dict[str, Any]:
        echo = self._echoes[index // self._count] if self._echoes else None
        before = str(self.served.loaded.tokenizer.decode(list(echo.ids))) if echo else ""
        return {
            "index": index,
            "text": before + (completion.text if completion else ""),
            "logprobs": self._logprobs(echo, (completion.logprobs if completion else None) or ()),
            "finish_reason": finish_reason(completion) if completion else "length",
        }

    def _logprobs(self, echo: _Echo | None, said: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """In the old shape: parallel lists. The first token of a text has no probability."""
        if not self._scored:
            return None
        scored: list[TokenLogprob | None] = [None, *echo.scores, *said] if echo else list(said)
        ids = [*(echo.ids if echo else ()), *(one.id for one in said)]
        texts = [self._text(token) for token in ids]
        return {
            "tokens": texts,
            "token_logprobs": [None if one is None else number(one.logprob) for one in scored],
            "top_logprobs": [None if one is None else self._top(one) for one in scored],
            "text_offset": list(accumulate(map(len, texts), initial=0))[:-1],
        }

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        return {self._text(other.id): number(other.logprob) for other in one.top}

    def _text(self, token: int) -> str:
        return str(token_text(self.served.loaded.tokenizer, token)["token"])
