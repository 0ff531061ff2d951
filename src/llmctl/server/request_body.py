"""Bodies of requests: read within a size and a time, and parsed strictly before anything else sees them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from llmctl.server.http_errors import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# An empty list takes three bytes here and sixty in memory. No conversation has so many.
MOST_BRACKETS = 200_000
_LINGER_SECONDS = 1.0


class Gone(Exception):  # noqa: N818 (nobody is told of it)
    """The client went away before its request was whole."""


async def read_body(headers: Mapping[str, str], receive: Receive, *, most_bytes: int, seconds: float) -> bytes:
    """The whole body.

    Args:
        headers: Those of the request, names in lower case.
        receive: ASGI's.
        most_bytes: A longer body is refused, before it is read where its length is declared.
        seconds: The time that all of it may take.

    Raises:
        RequestError: 413 for a body that is too long, 408 for one that is too slow.
        Gone: the client went away.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > most_bytes):
        raise _too_large(most_bytes)
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                length += len(message.get("body", b""))
                if length > most_bytes:
                    raise _too_large(most_bytes)
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise RequestError(
            f"the body was not complete after {seconds:g} seconds", status=408, code="request_timeout"
        ) from None


async def discard_rest(receive: Receive) -> None:
    """Let a client that was refused finish sending, for a moment: many read no answer before that."""
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


def check_json(body: bytes, *, most_depth: int) -> None:
    """Refuse what is not strict JSON, or nested deeper than `most_depth` lists and objects.

    Python's own parser lets NaN, lone surrogates and any depth through, which fail later, in places that do not expect
    them.

    Raises:
        RequestError: 400.
    """
    from pydantic_core import from_json

    if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
        raise RequestError(f"the JSON has more than {MOST_BRACKETS} lists and objects", code="json_too_large")
    try:
        level = [from_json(body, allow_inf_nan=False)]
    except ValueError as error:
        if "recursion limit" in str(error):  # pydantic_core has no class of its own for it
            raise _too_deep(most_depth) from None
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    for _ in range(most_depth):
        level = [
            child
            for value in level
            if isinstance(value, list | dict)
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, list | dict)
        ]
        if not level:
            return
    raise _too_deep(most_depth)


def _too_large(most_bytes: int) -> RequestError:
    return RequestError(f"the body is larger than {most_bytes} bytes", status=413, code="request_too_large")


def _too_deep(most_depth: int) -> RequestError:
    return RequestError(f"the JSON is nested deeper than {most_depth} levels", code="json_too_deep")
