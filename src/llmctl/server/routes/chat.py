"""`POST /v1/chat/completions`: a conversation goes on, with tools, reasoning apart, and answers of a given form."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmctl.generation.completion import Completion
from llmctl.generation.logprobs import token_text
from llmctl.generation.reasoning import Piece as Thought
from llmctl.generation.reasoning import ReasoningSplitter
from llmctl.generation.structured.constraint import check_for
from llmctl.generation.tools import Piece, Said, ToolUse, whole
from llmctl.server.answering import Asking, Shape, answer, finish_reason, number
from llmctl.server.http_errors import RequestError
from llmctl.server.schemas import ChatBody, ResponseFormat
from llmctl.server.tool_calls import asked_use, calls_in_shape, delta_in_shape

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from llmctl.server.registry import Served

_TAIL_TOKENS = 16  # enough to see whether a template opens reasoning


async def chat(http: "HttpRequest", served: "Served", body: ChatBody) -> "Response":
    """Answer a request."""
    served.check_name(body.model)
    asking, shape, prompt_tokens = await asyncio.to_thread(asked_of, served, body)
    return await answer(http, served, body, asking, shape, prompt_tokens=prompt_tokens)


def asked_of(served: "Served", body: ChatBody) -> tuple[Asking, Shape, int]:
    """The answers that a body asks for, how they are written, and the tokens of the prompt."""
    tokenizer, config = served.loaded.tokenizer, served.loaded.config
    use = asked_use(tokenizer, config.chat, body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
    messages, arguments = use.conversation([message.plain() for message in body.messages])
    ids = served.prompts.encode(messages, config.chat, **arguments)
    tail = str(tokenizer.decode(ids[-_TAIL_TOKENS:]))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    model = served.settings(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=logprobs,
        structure=_structure(body.response_format),
    )
    changes: dict[str, Any] = {"shown_tokens": use.shown}
    called = use.structure(tokenizer, prompt_tail=tail)
    if called is not None:
        if body.response_format is not None and body.response_format.type != "text":
            raise RequestError("response_format and tools that are enforced exclude each other", param="tools")
        check_for(called, tokenizer)
        changes["structure"] = called
    requests = served.requests(model, body, ids, **changes)
    asking = [(one, served.processors(body, len(ids))) for one in requests]
    return asking, _Chat(served, use, tail, count=len(requests)), len(ids)


def _structure(form: ResponseFormat | None) -> dict[str, Any] | None:
    """The section `structure` that a response_format means; None for that of the configuration."""
    if form is None:
        return None
    if form.type == "json_schema" and form.json_schema is not None:
        return {"json_schema": form.json_schema.schema_}
    return {"json_schema": {"type": "object"}} if form.type == "json_object" else {}


class _Parts:
    """One answer, split into reasoning, text and calls as it arrives. Its state: what is held back."""

    def __init__(self, use: ToolUse, tail: str) -> None:
        self._reasoning = ReasoningSplitter(tail)
        self._calls = use.splitter()

    @property
    def has_called(self) -> bool:
        """Whether there was a call so far."""
        return self._calls is not None and self._calls.call_count > 0

    def add(self, text: str, *, final: bool) -> Iterator[Thought | Piece]:
        """What new text brings; with the last of it what was held back."""
        for piece in (*self._reasoning.add(text), *(self._reasoning.finish() if final else ())):
            if piece.kind == "reasoning":
                yield piece
            elif self._calls is None:
                yield Said(piece.text)
            else:
                yield from self._calls.add(piece.text)
        if final and self._calls is not None:
            yield from self._calls.finish()


class _Chat(Shape):
    """Choices with a message."""

    def __init__(self, served: "Served", use: ToolUse, tail: str, *, count: int) -> None:
        super().__init__(served, "chat.completion", prefix="chatcmpl", chunk_kind="chat.completion.chunk")
        self._parts = [_Parts(use, tail) for _ in range(count)]

    def first(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self._parts)):
            yield _delta(index, {"role": "assistant", "content": ""})

    def pieces(self, index: int, text: str, end: Completion | None) -> Iterator[dict[str, Any]]:
        parts = self._parts[index]
        for piece in parts.add(text, final=end is not None):
            delta = {"reasoning_content": piece.text} if isinstance(piece, Thought) else delta_in_shape(piece)
            yield _delta(index, delta)
        if end is not None:
            reason = _reason(end, has_called=parts.has_called)
            yield {**_delta(index, {}), "logprobs": self._logprobs(end), "finish_reason": reason}

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        found = list(self._parts[index].add(completion.text, final=True))
        reasoning = "".join(piece.text for piece in found if isinstance(piece, Thought))
        text, calls = whole(piece for piece in found if not isinstance(piece, Thought))
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls_in_shape(calls)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(completion),
            "finish_reason": _reason(completion, has_called=bool(calls)),
        }

    def _logprobs(self, completion: Completion) -> dict[str, Any] | None:
        if completion.logprobs is None:
            return None
        content = [
            {**self._token(one), "top_logprobs": [self._token(other) for other in one.top]}
            for one in completion.logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, one: Any) -> dict[str, Any]:
        found = token_text(self.served.loaded.tokenizer, one.id)
        data = found.get("bytes") or list(str(found["token"]).encode())
        return {"token": found["token"], "logprob": number(one.logprob), "bytes": data}


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _reason(completion: Completion, *, has_called: bool) -> str:
    reason = finish_reason(completion)
    return "tool_calls" if has_called and reason == "stop" else reason
