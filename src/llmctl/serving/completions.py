"""`POST /v1/completions`: a text goes on."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.generation.completion import Completion
from llmctl.generation.prompt import encode_prompt
from llmctl.generation.scores import TokenLogprob, token_text
from llmctl.serving.answering import Asking, Shape, answer, finish_reason, number
from llmctl.serving.messages import CompletionBody
from llmctl.serving.problems import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from llmctl.serving.served import Served

_RAW = ChatSection(raw=True)


async def complete(http: "HttpRequest", served: "Served", body: CompletionBody) -> "Response":
    """Answer a request."""
    served.check_name(body.model)
    asking, prompt_tokens = await asyncio.to_thread(_asking, served, body)
    shape = _Plain(served, "text_completion", prefix="cmpl")
    return await answer(
        http,
        served,
        asking,
        shape,
        prompt_tokens=prompt_tokens,
        stream=bool(body.stream),
        wants_usage=body.wants_usage,
    )


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


class _Plain(Shape):
    """Choices with `text`."""

    def pieces(self, index: int, text: str, end: Completion | None) -> Iterator[dict[str, Any]]:
        if text or end is not None:
            reason = finish_reason(end) if end is not None else None
            logprobs = self._logprobs(end) if end is not None else None
            yield {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        return {
            "index": index,
            "text": completion.text,
            "logprobs": self._logprobs(completion),
            "finish_reason": finish_reason(completion),
        }

    def _logprobs(self, completion: Completion) -> dict[str, Any] | None:
        """In the old shape: parallel lists."""
        if completion.logprobs is None:
            return None
        tokenizer = self.served.loaded.tokenizer
        texts = [str(token_text(tokenizer, one.id)["token"]) for one in completion.logprobs]
        starts = [sum(map(len, texts[:place])) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [number(one.logprob) for one in completion.logprobs],
            "top_logprobs": [self._top(one) for one in completion.logprobs],
            "text_offset": starts,
        }

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        tokenizer = self.served.loaded.tokenizer
        return {str(token_text(tokenizer, other.id)["token"]): number(other.logprob) for other in one.top}
