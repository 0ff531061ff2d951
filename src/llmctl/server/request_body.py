"""Reading of request bodies within limits of size and time, and their check as strict JSON before the app gets them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from llmctl.server.http_errors import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# Limits memory: an empty list takes three bytes of JSON, but sixty in memory. No conversation needs this many.
MAX_CONTAINERS = 200_000
# A float takes two bytes of JSON and a comma, but more than thirty in memory. Base64 has no commas.
MAX_VALUES = 4_000_000
_LINGER_SECONDS = 1.0


class ClientDisconnected(Exception):  # noqa: N818 (it is not an error to report)
    """The client disconnected before its request was complete."""


async def read_body(headers: Mapping[str, str], receive: Receive, *, max_bytes: int, seconds: float) -> bytes:
    """Return the whole body.

    Args:
        headers: The request's headers, with names in lower case.
        receive: ASGI's receive function.
        max_bytes: Size limit. A larger Content-Length is refused before the body is read.
        seconds: Time limit for the whole body.

    Raises:
        RequestError: 413 if the body is too long, 408 if it arrives too slowly.
        ClientDisconnected: the client disconnected before the body was complete.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                length += len(message.get("body", b""))
                if length > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise RequestError(
            f"the body was not complete after {seconds:g} seconds", status=408, code="request_timeout"
        ) from None


async def discard_rest(receive: Receive) -> None:
    """Discard the rest of a refused body for up to a second: many clients read the response only after sending all."""
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


def check_json(body: bytes, *, max_depth: int) -> None:
    """Check that a body is strict JSON, nested at most `max_depth` levels deep.

    Python's parser accepts NaN, lone surrogates and any depth, which cause failures elsewhere.

    Raises:
        RequestError: 400 if the body does not pass.
    """
    from pydantic_core import from_json

    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise RequestError(f"the JSON has more than {MAX_CONTAINERS} lists and objects", code="json_too_large")
    if body.count(b",") > MAX_VALUES:
        raise RequestError(f"the JSON has more than {MAX_VALUES:,} commas", code="json_too_large")
    try:
        level = [from_json(body, allow_inf_nan=False)]
    except ValueError as error:
        if "recursion limit" in str(error):  # pydantic_core has no exception class for it
            raise _too_deep(max_depth) from None
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    for _ in range(max_depth):
        level = [
            child
            for value in level
            if isinstance(value, list | dict)
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, list | dict)
        ]
        if not level:
            return
    raise _too_deep(max_depth)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body is larger than {max_bytes} bytes", status=413, code="request_too_large")


def _too_deep(max_depth: int) -> RequestError:
    return RequestError(f"the JSON is nested deeper than {max_depth} levels", code="json_too_deep")
