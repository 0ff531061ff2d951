"""From a client that asks to an answer on its way: whole or streamed, cancelled when the client goes away."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError
from llmctl.generation.completion import Completion
from llmctl.generation.request import Request
from llmctl.server.http_errors import RequestError, error_of
from llmctl.server.metrics import Watch
from llmctl.server.schemas import Sampling

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from llmctl.server.registry import Served
    from llmctl.server.worker import Asked

_log = logging.getLogger("llmctl.serve")
Asking = Sequence[tuple[Request, Sequence[Any]]]


class Shape:
    """How answers of one kind are written: OpenAI's chat or plain completions. Its state: what has been told of each.

    Args:
        served: The model.
        kind: The `object` of a whole answer.
        prefix: What its id begins with.
        chunk_kind: The `object` of a piece, where it is another.
    """

    def __init__(self, served: "Served", kind: str, *, prefix: str, chunk_kind: str | None = None) -> None:
        self.served = served
        self.kind, self.chunk_kind = kind, chunk_kind or kind
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def document(self, choices: list[Any], *, chunk: bool = False, **more: Any) -> dict[str, Any]:
        """A whole answer, or a piece of one."""
        kind = self.chunk_kind if chunk else self.kind
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.served.name}
        return {**head, "choices": choices, **more}

    def first(self) -> Iterator[dict[str, Any]]:
        """Choices that a stream begins with."""
        return iter(())

    def pieces(self, index: int, text: str, end: Completion | None) -> Iterator[dict[str, Any]]:
        """Choices of a stream for what is new of an answer."""
        raise NotImplementedError

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """The choice of a whole answer."""
        raise NotImplementedError


def finish_reason(completion: Completion) -> str:
    """OpenAI's word for why an answer ended."""
    return "length" if completion.finish_reason == "length" else "stop"


def number(logprob: float) -> float:
    """A log-probability as JSON has it: OpenAI's -9999 for minus infinity."""
    return max(logprob, -9999.0)


def usage(completions: Sequence[Completion], prompt_tokens: int) -> dict[str, int]:
    """The tokens of all answers; a prompt with several of them counts once."""
    generated = sum(len(completion.token_ids) for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
    }


async def answer(
    http: "HttpRequest",
    served: "Served",
    body: Sampling,
    asking: Asking,
    shape: Shape,
    *,
    prompt_tokens: int,
) -> "Response":
    """The response to one request, whole or streamed as its body asks.

    Raises:
        LlmctlError, RequestError: it failed before anything was sent.
    """
    from starlette.responses import JSONResponse

    asked = submitted(served, asking)
    if body.stream:
        events = _events(served, asked, shape, prompt_tokens=prompt_tokens, wants_usage=body.wants_usage)
        return stream_of(served, asked, events)
    completions = await whole_answers(http, served, asked)
    choices = [shape.choice(index, completion) for index, completion in enumerate(completions)]
    return JSONResponse(shape.document(choices, usage=usage(completions, prompt_tokens)))


def stream_of(served: "Served", asked: "Asked", events: AsyncIterator[str]) -> "Response":
    """Events on their way. A client can go away before the first one is asked for: nothing in `events` has run then."""
    from starlette.responses import StreamingResponse

    class Events(StreamingResponse):
        async def __call__(self, *arguments: Any) -> None:
            try:
                await super().__call__(*arguments)
            finally:
                served.worker.cancel(asked)

    return Events(events, media_type="text/event-stream")


def submitted(served: "Served", asking: Asking) -> "Asked":
    """The answers, waiting for their turn. Raises RequestError where there is no room for them."""
    try:
        return served.worker.submit(asking, seconds=served.request_seconds)
    except RequestError:
        served.metrics.refused()
        raise


async def whole_answers(http: "HttpRequest", served: "Served", asked: "Asked") -> list[Completion]:
    """Every answer, in the order in which they were asked for; given up when the client goes away."""
    completions: list[Completion] = []
    with watched(served, asked, completions) as watch:
        completions += await _unless_gone(http, _all_of(asked, watch))
    return completions


def failed(watch: Watch, error: Exception) -> RequestError:
    """What a stream, whose status is sent already, tells of an error."""
    watch.outcome = "failed"
    if not isinstance(error, LlmctlError | RequestError):
        _log.exception("a bug while streaming")
    return error_of(error)


class _LeftError(RequestError):
    """The client went away: nobody reads this."""


@contextmanager
def watched(served: "Served", asked: "Asked", completions: list[Completion]) -> Iterator[Watch]:
    """What is not done when the block is left is not wanted any more; what became of the request is counted."""
    watch = Watch()
    try:
        yield watch
    except (GeneratorExit, asyncio.CancelledError, _LeftError):
        watch.outcome = "cancelled"
        raise
    except Exception:
        watch.outcome = "failed"
        raise
    finally:
        served.worker.cancel(asked)
        served.metrics.ended(watch, completions)


async def _all_of(asked: "Asked", watch: Watch) -> list[Completion]:
    found: dict[int, Completion] = {}
    async for news in asked.pieces():
        watch.text_came()
        found |= {index: end for index, _, end in news if end is not None}
    return [found[index] for index in range(len(asked.tickets))]


async def _unless_gone(http: "HttpRequest", work: Any) -> list[Completion]:
    """What `work` gives, unless the client goes away first."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _LeftError("the client went away", status=499)
        return list(doing.result())
    finally:
        doing.cancel()
        leaving.cancel()


async def _left(http: "HttpRequest") -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _events(
    served: "Served", asked: "Asked", shape: Shape, *, prompt_tokens: int, wants_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; what has come meanwhile goes out together."""
    more: dict[str, Any] = {"usage": None} if wants_usage else {}
    completions: list[Completion] = []
    with watched(served, asked, completions) as watch:
        if begun := "".join(data_event(shape.document([one], chunk=True, **more)) for one in shape.first()):
            yield begun
        try:
            async for news in asked.pieces():
                watch.text_came()
                completions += [end for _, _, end in news if end is not None]
                choices = [one for index, text, end in news for one in shape.pieces(index, text, end)]
                if choices:
                    yield "".join(data_event(shape.document([one], chunk=True, **more)) for one in choices)
        except Exception as error:  # noqa: BLE001 (the status is sent already: it is told in the stream)
            yield data_event(failed(watch, error).body())
            return
        if wants_usage:
            yield data_event(shape.document([], chunk=True, usage=usage(completions, prompt_tokens)))
        yield "data: [DONE]\n\n"


def data_event(document: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"
