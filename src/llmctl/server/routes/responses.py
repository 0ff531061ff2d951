"""`POST /v1/responses`, for text: the chat in the words of OpenAI's newer API. Nothing is stored."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from llmctl.generation.completion import Completion
from llmctl.server.answering import (
    Shape,
    data_event,
    failed,
    finish_reason,
    stream_of,
    submitted,
    watched,
    whole_answers,
)
from llmctl.server.routes.chat import asked_of
from llmctl.server.schemas import ResponseBody

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from llmctl.server.registry import Served
    from llmctl.server.worker import Asked


async def respond(http: "HttpRequest", served: "Served", body: ResponseBody) -> "Response":
    """Answer a request."""
    from starlette.responses import JSONResponse

    served.check_name(body.model)
    asking, shape, prompt_tokens = await asyncio.to_thread(asked_of, served, body.chat())
    asked = submitted(served, asking)
    form = _Form(served, body, prompt_tokens)
    if body.stream:
        return stream_of(served, asked, _events(served, asked, shape, form))
    [completion] = await whole_answers(http, served, asked)
    message = shape.choice(0, completion)["message"]
    output = form.output(message.get("reasoning_content"), message["content"])
    return JSONResponse(form.document(output, completion))


class _Form:
    """How an answer is written. Its state: how many events there were."""

    def __init__(self, served: "Served", body: ResponseBody, prompt_tokens: int) -> None:
        self._served, self._body, self._prompt_tokens = served, body, prompt_tokens
        self.id, self.item, self.reasoning_item = (f"{kind}_{secrets.token_hex(12)}" for kind in ("resp", "msg", "rs"))
        self._created, self._count = int(time.time()), 0

    def event(self, kind: str, **more: Any) -> str:
        """An event of a stream, numbered."""
        document = {"type": kind, "sequence_number": self._count, **more}
        self._count += 1
        return f"event: {kind}\n{data_event(document)}"

    def message(self, text: str | None) -> dict[str, Any]:
        """The message of an answer; without a text one that has only begun."""
        status = "in_progress" if text is None else "completed"
        content = [] if text is None else [part(text)]
        return {"type": "message", "id": self.item, "status": status, "role": "assistant", "content": content}

    def output(self, reasoning: str | None, text: str | None) -> list[dict[str, Any]]:
        """What a whole answer consists of."""
        content = [{"type": "reasoning_text", "text": reasoning}]
        thought = {"type": "reasoning", "id": self.reasoning_item, "summary": [], "content": content}
        return [*([thought] if reasoning else []), self.message(text or "")]

    def document(self, output: list[dict[str, Any]], done: Completion | None) -> dict[str, Any]:
        """The whole response, done or only begun."""
        body = self._body
        is_cut = done is not None and finish_reason(done) == "length"
        asked = body.text.format if body.text else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if done is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._served.name,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "temperature": body.temperature,
            "text": {"format": asked.model_dump(by_alias=True, exclude_none=True) if asked else {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if done is None else self._usage(done),
            "metadata": body.metadata or {},
        }

    def _usage(self, done: Completion) -> dict[str, Any]:
        tokens = len(done.token_ids)
        return {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + tokens,
        }


def part(text: str) -> dict[str, Any]:
    """The part of a message that is its text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _events(served: "Served", asked: "Asked", shape: Shape, form: _Form) -> AsyncIterator[str]:
    """OpenAI's events; reasoning comes with the whole answer, at the end."""
    completions: list[Completion] = []
    reasoning = text = ""
    place = {"item_id": form.item, "output_index": 0, "content_index": 0}
    with watched(served, asked, completions) as watch:
        yield "".join(_begun(form, place))
        try:
            async for news in asked.pieces():
                watch.text_came()
                completions += [end for _, _, end in news if end is not None]
                for choice in (one for index, new, end in news for one in shape.pieces(index, new, end)):
                    reasoning += choice["delta"].get("reasoning_content") or ""
                    if delta := choice["delta"].get("content"):
                        text += delta
                        yield form.event("response.output_text.delta", **place, delta=delta, logprobs=[])
        except Exception as error:  # noqa: BLE001 (the status is sent already: it is told in the stream)
            yield form.event("error", **failed(watch, error).body()["error"])
            return
        yield "".join(_ended(form, place, reasoning, text, completions[0]))


def _begun(form: _Form, place: dict[str, Any]) -> Iterator[str]:
    yield form.event("response.created", response=form.document([], None))
    yield form.event("response.in_progress", response=form.document([], None))
    yield form.event("response.output_item.added", output_index=0, item=form.message(None))
    yield form.event("response.content_part.added", **place, part=part(""))


def _ended(form: _Form, place: dict[str, Any], reasoning: str, text: str, done: Completion) -> Iterator[str]:
    yield form.event("response.output_text.done", **place, text=text, logprobs=[])
    yield form.event("response.content_part.done", **place, part=part(text))
    yield form.event("response.output_item.done", output_index=0, item=form.message(text))
    kind = "response.incomplete" if finish_reason(done) == "length" else "response.completed"
    yield form.event(kind, response=form.document(form.output(reasoning, text), done))
