"""Answering of one HTTP request: submit it to the worker, respond at once or as a stream, cancel it on disconnect."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError
from llmctl.generation.completion import Completion, DecodingStats
from llmctl.generation.request import Request
from llmctl.server.http_errors import RequestError, to_request_error
from llmctl.server.metrics import RequestTimer
from llmctl.server.schemas import Sampling

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from llmctl.server.pending import AnswerUpdate, PendingResponse
    from llmctl.server.registry import ModelRegistry

_log = logging.getLogger("llmctl.serve")


@dataclass(frozen=True)
class Submission:
    """The generation requests of one HTTP request.

    Attributes:
        requests: Each request with its own logits processors.
        prompt_tokens: Tokens of all prompts; a prompt with several answers counts once.
    """

    requests: Sequence[tuple[Request, Sequence[Any]]]
    prompt_tokens: int


class ChoiceWriter:
    """Writes answers in the JSON format of one of OpenAI's APIs. Subclasses may keep the state of each answer.

    Args:
        registry: The model.
        object_name: The `object` field of a complete answer.
        id_prefix: The prefix of the answer's id.
        chunk_object: The `object` field of a chunk, if it differs.
    """

    def __init__(
        self, registry: "ModelRegistry", object_name: str, *, id_prefix: str, chunk_object: str | None = None
    ) -> None:
        self.registry = registry
        self._object, self._chunk_object = object_name, chunk_object or object_name
        self._id = f"{id_prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def document(self, choices: list[Any], *, chunk: bool = False, **fields: Any) -> dict[str, Any]:
        """Return a complete answer, or a chunk of a streamed one."""
        return {
            "id": self._id,
            "object": self._chunk_object if chunk else self._object,
            "created": self._created,
            "model": self.registry.name,
            "choices": choices,
            **fields,
        }

    def opening_choices(self) -> Iterator[dict[str, Any]]:
        """Yield the choices that begin a stream."""
        return iter(())

    def chunk_choices(self, update: "AnswerUpdate") -> Iterator[dict[str, Any]]:
        """Yield the streamed choices for new text of an answer."""
        raise NotImplementedError

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """Return the choice for a complete answer."""
        raise NotImplementedError


def finish_reason(completion: Completion) -> str:
    """Return OpenAI's name of a finish reason."""
    return "length" if completion.finish_reason == "length" else "stop"


def json_logprob(logprob: float) -> float:
    """Return a log-probability for JSON. Like OpenAI, write -9999 for minus infinity, which JSON cannot represent."""
    return max(logprob, -9999.0)


def usage(completions: Sequence[Completion], prompt_tokens: int) -> dict[str, Any]:
    """Return the token counts of all answers. Tokens from a draft model or prompt lookup count as predictions."""
    generated = sum(len(completion.token_ids) for completion in completions)
    stats = [completion.decoding_stats for completion in completions]
    with_proposals = [answer_stats for answer_stats in stats if answer_stats and answer_stats.forward_passes]
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        **({"completion_tokens_details": _predictions(with_proposals)} if with_proposals else {}),
    }


def _predictions(stats: Sequence[DecodingStats]) -> dict[str, int]:
    accepted = sum(one.accepted_tokens or 0 for one in stats)
    drafted = sum(one.drafted_tokens or 0 for one in stats)
    return {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}


async def answer(
    http: "HttpRequest", registry: "ModelRegistry", body: Sampling, submission: Submission, writer: ChoiceWriter
) -> "Response":
    """Return the response to one request, streamed if the body sets `stream`.

    Raises:
        LlmctlError, RequestError: the request failed before anything was sent.
    """
    from starlette.responses import JSONResponse

    pending = submit(registry, submission)
    if body.stream:
        events = _chunk_events(registry, pending, writer, submission, wants_usage=body.wants_usage)
        return event_stream(registry, pending, events)
    completions = await collect_completions(http, registry, pending)
    choices = [writer.choice(index, completion) for index, completion in enumerate(completions)]
    return JSONResponse(writer.document(choices, usage=usage(completions, submission.prompt_tokens)))


def submit(registry: "ModelRegistry", submission: Submission) -> "PendingResponse":
    """Queue the requests. Raises RequestError if the queue is full."""
    try:
        return registry.worker.submit(submission.requests, seconds=registry.request_seconds)
    except RequestError:
        registry.metrics.count_refused()
        raise


def event_stream(registry: "ModelRegistry", pending: "PendingResponse", events: AsyncIterator[str]) -> "Response":
    """Return a streamed response.

    If the client disconnects before the first event is read, `events` never runs. Therefore the response itself cancels
    the pending answers.
    """
    from starlette.responses import StreamingResponse

    class EventStream(StreamingResponse):
        async def __call__(self, *arguments: Any) -> None:
            try:
                await super().__call__(*arguments)
            finally:
                registry.worker.cancel(pending)

    return EventStream(events, media_type="text/event-stream")


async def collect_completions(
    http: "HttpRequest", registry: "ModelRegistry", pending: "PendingResponse"
) -> list[Completion]:
    """Return every answer in the order of the requests. Cancel them if the client disconnects."""
    completions: list[Completion] = []
    with tracked(registry, pending, completions) as timer:
        completions += await _unless_disconnected(http, _completions(pending, timer))
    return completions


def stream_error(timer: RequestTimer, error: Exception) -> RequestError:
    """Return the error to write into a stream, whose status has been sent already."""
    timer.outcome = "failed"
    if not isinstance(error, LlmctlError | RequestError):
        _log.exception("a bug while streaming")
    return to_request_error(error)


class _DisconnectedError(RequestError):
    """The client has disconnected; nobody reads this error."""


@contextmanager
def tracked(
    registry: "ModelRegistry", pending: "PendingResponse", completions: list[Completion]
) -> Iterator[RequestTimer]:
    """Count the outcome of a request. At the end of the block, cancel answers that are still pending."""
    timer = RequestTimer()
    try:
        yield timer
    except (GeneratorExit, asyncio.CancelledError, _DisconnectedError):
        timer.outcome = "cancelled"
        raise
    except Exception:
        timer.outcome = "failed"
        raise
    finally:
        registry.worker.cancel(pending)
        registry.metrics.count_ended(timer, completions)


async def _completions(pending: "PendingResponse", timer: RequestTimer) -> list[Completion]:
    by_index: dict[int, Completion] = {}
    async for updates in pending.updates():
        timer.note_first_text()
        by_index |= {update.index: update.completion for update in updates if update.completion is not None}
    return [by_index[index] for index in range(len(pending.answers))]


async def _unless_disconnected(http: "HttpRequest", work: Coroutine[Any, Any, list[Completion]]) -> list[Completion]:
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(http))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _DisconnectedError("the client has disconnected", status=499)
        return working.result()
    finally:
        working.cancel()
        disconnected.cancel()


async def _disconnect(http: "HttpRequest") -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _chunk_events(
    registry: "ModelRegistry",
    pending: "PendingResponse",
    writer: ChoiceWriter,
    submission: Submission,
    *,
    wants_usage: bool,
) -> AsyncIterator[str]:
    """Yield server-sent events. Each item has all events that are ready."""
    fields: dict[str, Any] = {"usage": None} if wants_usage else {}

    def chunks(choices: Iterator[dict[str, Any]]) -> str:
        return "".join(data_event(writer.document([choice], chunk=True, **fields)) for choice in choices)

    completions: list[Completion] = []
    with tracked(registry, pending, completions) as timer:
        if opening := chunks(writer.opening_choices()):
            yield opening
        try:
            async for updates in pending.updates():
                timer.note_first_text()
                completions += [update.completion for update in updates if update.completion is not None]
                if text := chunks(choice for update in updates for choice in writer.chunk_choices(update)):
                    yield text
        except Exception as error:  # noqa: BLE001 (the status has been sent, so the stream carries the error)
            yield data_event(stream_error(timer, error).body())
            return
        if wants_usage:
            total = usage(completions, submission.prompt_tokens)
            yield data_event(writer.document([], chunk=True, usage=total))
        yield "data: [DONE]\n\n"


def data_event(document: dict[str, Any]) -> str:
    """Return a document as a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"
