"""`POST /v1/responses`: chat with text and images, in the format of OpenAI's newer API. Nothing is stored."""

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from llmctl.generation.completion import Completion
from llmctl.server.answering import (
    collect_completions,
    data_event,
    event_stream,
    finish_reason,
    stream_error,
    submit,
    tracked,
)
from llmctl.server.image_reader import placed_images
from llmctl.server.response_body import ResponseBody
from llmctl.server.routes.chat import MessageWriter, prepare_chat

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.pending import PendingResponse
    from llmctl.server.registry import ModelRegistry


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the route."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response

    @app.post("/v1/responses", response_model=None)
    async def responses(request: Request, body: ResponseBody) -> Response:
        registry.check_model(body.model)
        images = placed_images("input", body.input)
        submission, choices = await registry.prepare_answer(images, partial(prepare_chat, registry, body.chat()))
        pending = submit(registry, submission)
        writer = _ResponseWriter(registry, body, submission.prompt_tokens)
        if body.stream:
            return event_stream(registry, pending, _events(registry, pending, choices, writer))
        [completion] = await collect_completions(request, registry, pending)
        message = choices.choice(0, completion)["message"]
        output = writer.output(message.get("reasoning_content"), message["content"])
        return JSONResponse(writer.document(output, completion))


class _ResponseWriter:
    """Writes one response and its events. Its state: the number of events so far."""

    def __init__(self, registry: "ModelRegistry", body: ResponseBody, prompt_tokens: int) -> None:
        self._registry, self._body, self._prompt_tokens = registry, body, prompt_tokens
        self._id, self._message_id, self._reasoning_id = (
            f"{prefix}_{secrets.token_hex(12)}" for prefix in ("resp", "msg", "rs")
        )
        self.position = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        self._created, self._event_count = int(time.time()), 0

    def event(self, name: str, **fields: Any) -> str:
        """Return the next event of a stream, with its number."""
        document = {"type": name, "sequence_number": self._event_count, **fields}
        self._event_count += 1
        return f"event: {name}\n{data_event(document)}"

    def message(self, text: str | None) -> dict[str, Any]:
        """Return the output message; None as text means that it is in progress."""
        status = "in_progress" if text is None else "completed"
        content = [] if text is None else [_text_part(text)]
        return {"type": "message", "id": self._message_id, "status": status, "role": "assistant", "content": content}

    def output(self, reasoning: str | None, text: str | None) -> list[dict[str, Any]]:
        """Return the output items of a complete answer."""
        content = [{"type": "reasoning_text", "text": reasoning}]
        item = {"type": "reasoning", "id": self._reasoning_id, "summary": [], "content": content}
        return [*([item] if reasoning else []), self.message(text or "")]

    def document(self, output: list[dict[str, Any]], completion: Completion | None) -> dict[str, Any]:
        """Return the whole response; None as completion means that it is in progress."""
        body = self._body
        is_cut = completion is not None and finish_reason(completion) == "length"
        text_format = body.text.format if body.text else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if completion is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._registry.name,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "temperature": body.temperature,
            "text": {
                "format": text_format.model_dump(by_alias=True, exclude_none=True) if text_format else {"type": "text"}
            },
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if completion is None else self._usage(completion),
            "metadata": body.metadata or {},
            **({} if completion is None else {"seed": completion.seed}),
        }

    def _usage(self, completion: Completion) -> dict[str, Any]:
        tokens = len(completion.token_ids)
        return {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + tokens,
        }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _events(
    registry: "ModelRegistry", pending: "PendingResponse", choices: MessageWriter, writer: _ResponseWriter
) -> AsyncIterator[str]:
    """Yield OpenAI's events. Reasoning is sent at the end, with the complete answer."""
    completions: list[Completion] = []
    reasoning = text = ""
    with tracked(registry, pending, completions) as timer:
        yield "".join(_opening_events(writer))
        try:
            async for updates in pending.updates():
                timer.note_first_text()
                completions += [update.completion for update in updates if update.completion is not None]
                for choice in (choice for update in updates for choice in choices.chunk_choices(update)):
                    reasoning += choice["delta"].get("reasoning_content") or ""
                    if delta := choice["delta"].get("content"):
                        text += delta
                        yield writer.event("response.output_text.delta", **writer.position, delta=delta, logprobs=[])
        except Exception as error:  # noqa: BLE001 (the status has been sent, so the stream carries the error)
            yield writer.event("error", **stream_error(timer, error).body()["error"])
            return
        yield "".join(_closing_events(writer, reasoning, text, completions[0]))


def _opening_events(writer: _ResponseWriter) -> Iterator[str]:
    yield writer.event("response.created", response=writer.document([], None))
    yield writer.event("response.in_progress", response=writer.document([], None))
    yield writer.event("response.output_item.added", output_index=0, item=writer.message(None))
    yield writer.event("response.content_part.added", **writer.position, part=_text_part(""))


def _closing_events(writer: _ResponseWriter, reasoning: str, text: str, completion: Completion) -> Iterator[str]:
    yield writer.event("response.output_text.done", **writer.position, text=text, logprobs=[])
    yield writer.event("response.content_part.done", **writer.position, part=_text_part(text))
    yield writer.event("response.output_item.done", output_index=0, item=writer.message(text))
    name = "response.incomplete" if finish_reason(completion) == "length" else "response.completed"
    yield writer.event(name, response=writer.document(writer.output(reasoning, text), completion))
