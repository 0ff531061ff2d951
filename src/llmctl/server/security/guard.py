"""The guard around the whole app: it checks Host, Origin, API key and body of every request.

It is plain ASGI without a framework, so that it also covers pages, documentation and unknown paths. The cheapest checks
come first, and the body is read last.
"""

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from llmctl.server.http_errors import RequestError, to_request_error
from llmctl.server.request_body import ClientDisconnected, Message, Receive, check_json, discard_rest, read_body
from llmctl.server.security.hosts import allowed_hosts, host_is_allowed, origin_is_allowed, origin_is_listed
from llmctl.server.security.keys import Keys

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

access_log = logging.getLogger("llmctl.serve.access")
_log = logging.getLogger("llmctl.serve")

# The page may send requests only to its own server; inline scripts, inline styles and frames are forbidden.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY_HEADERS: tuple[Header, ...] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
HEAD_BYTES = 16 * 1024  # request line and headers
HEAD_TOO_LARGE = f"the request line and the headers have more than {HEAD_BYTES} bytes"
_EXPOSED = b"x-request-id, retry-after"
_METHODS = b"GET, POST, DELETE, OPTIONS"
_PREFLIGHT_SECONDS = b"600"


@dataclass(frozen=True)
class Rules:
    """The access rules of a server.

    Attributes:
        hosts: Allowed Host headers (`allowed_hosts`).
        origins: Origins of other sites whose pages may use the server; `*` for all.
        keys: The API keys; None if no key is needed.
        open_paths: Paths that clients can read without a key.
        body_bytes: Maximum size of a body.
        body_seconds: Time limit for a whole body.
        json_depth: Maximum nesting depth of a JSON body.
    """

    hosts: tuple[str, ...] = allowed_hosts("127.0.0.1")
    origins: tuple[str, ...] = ()
    keys: Keys | None = None
    open_paths: frozenset[str] = frozenset()
    body_bytes: int = 32 * 1024 * 1024
    body_seconds: float = 30.0
    json_depth: int = 64

    def to_json(self) -> str:
        """Serialise for a guard in another process, with the hashes of keys."""
        digests = [digest.hex() for digest in self.keys.digests] if self.keys else []
        return json.dumps({**vars(self), "open_paths": sorted(self.open_paths), "keys": digests})

    @classmethod
    def from_json(cls, text: str) -> "Rules":
        """Read the output of `to_json`."""
        document = json.loads(text)
        digests = tuple(bytes.fromhex(digest) for digest in document["keys"])
        converted = {
            "hosts": tuple(document["hosts"]),
            "origins": tuple(document["origins"]),
            "keys": Keys(digests, "llmctl") if digests else None,
            "open_paths": frozenset(document["open_paths"]),
        }
        return cls(**{**document, **converted})


class Guard:
    """An ASGI app that applies access rules to every request of another app.

    Every response gets the security headers and a request id. Refusals and bugs become errors in OpenAI's shape.
    """

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        response = _Response(scope, send, _cors_headers(headers, self.rules))
        scope.setdefault("state", {})["request_id"] = response.request_id
        try:
            self._check_access(scope, headers)
            if _is_preflight(scope, headers):
                await response.send_empty(_preflight_headers(headers))
                return
            await self.app(scope, await self._checked_body(headers, receive), response.send)
        except ClientDisconnected:
            pass
        except RequestError as error:
            await response.refuse(error, receive)
        except Exception as error:  # noqa: BLE001 (it is logged with its traceback; later requests must not suffer)
            _log.exception("%s: a bug", response.request_id)
            await response.refuse(to_request_error(error), receive)
        finally:
            response.log_access()

    def _check_access(self, scope: Scope, headers: Mapping[str, str]) -> None:
        rules = self.rules
        host, origin = headers.get("host"), headers.get("origin")
        if _head_bytes(scope) > HEAD_BYTES:  # the server's own limit covers incomplete heads only
            raise RequestError(HEAD_TOO_LARGE, status=431)
        if not host_is_allowed(host, rules.hosts):
            raise RequestError(
                "the name in the Host header is not allowed; add it to serve.allowed_hosts",
                status=403,
                code="host_not_allowed",
            )
        if origin is not None and not origin_is_allowed(origin, host, rules.origins):
            raise RequestError(
                "the origin of this page is not allowed; add it to serve.allowed_origins",
                status=403,
                code="origin_not_allowed",
            )
        is_open = scope["method"] in ("GET", "HEAD") and scope["path"] in rules.open_paths
        if rules.keys is None or is_open or _is_preflight(scope, headers):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthorized("an API key is required, in the header Authorization: Bearer KEY", None)
        if not rules.keys.accepts(key.strip().encode("latin-1")):
            raise _unauthorized("the API key is not valid", "invalid_api_key")

    async def _checked_body(self, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Read and check the body; return a `receive` that replays it."""
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            return receive
        rules = self.rules
        body = await read_body(headers, receive, max_bytes=rules.body_bytes, seconds=rules.body_seconds)
        if body:
            _check_content_type(headers)
            check_json(body, max_depth=rules.json_depth)
        return _replay(body, receive)


class _Response:
    """The response to one request. Its state: the status, once it has been sent."""

    def __init__(self, scope: Scope, send: Send, cors: list[Header]) -> None:
        self.request_id = f"req_{uuid.uuid4().hex}"
        self._scope, self._send, self._cors = scope, send, cors
        self._status: int | None = None
        self._started = time.monotonic()

    async def send(self, message: Message) -> None:
        """Send an ASGI message; the start of a response gets llmctl's headers."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            added = [(b"x-request-id", self.request_id.encode()), *_SECURITY_HEADERS, *self._cors]
            if not self._cors:
                added.append((b"cross-origin-resource-policy", b"same-origin"))
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            if b"cache-control" not in names:
                added.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*headers, *(header for header in added if header[0] not in names)]}
        await self._send(message)

    async def send_empty(self, headers: list[Header]) -> None:
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: RequestError, receive: Receive) -> None:
        """Send an error, discard the rest of the request for a moment, and close the connection."""
        if self._status is not None:  # too late for a status; uvicorn closes unfinished responses
            return
        body = json.dumps(error.body()).encode()
        headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await discard_rest(receive)
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def log_access(self) -> None:
        """Write a line to the access log, without the query and the headers, which may contain secrets."""
        client = self._scope.get("client") or ("-",)
        path = self._scope["path"][:200].encode("unicode_escape").decode()  # no line breaks, no control characters
        seconds = time.monotonic() - self._started
        access_log.info(
            "%s %s %s %s %.3fs %s",
            client[0],
            self._scope["method"],
            path,
            self._status or "gone",
            seconds,
            self.request_id,
        )


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers of a request, with names in lower case. Repeated headers are joined by commas."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _head_bytes(scope: Scope) -> int:
    line = len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b""))
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _unauthorized(message: str, code: str | None) -> RequestError:
    return RequestError(message, status=401, code=code, headers={"WWW-Authenticate": "Bearer"})


def _is_preflight(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Return True for a CORS preflight: a browser's question whether a page may send its request."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _cors_headers(headers: Mapping[str, str], rules: Rules) -> list[Header]:
    """Return the headers that let a page of a listed origin read the response."""
    origin = headers.get("origin")
    if origin is None or not origin_is_listed(origin, rules.origins):
        return []
    allowed = b"*" if "*" in rules.origins else origin.encode("latin-1")
    return [
        (b"access-control-allow-origin", allowed),
        (b"access-control-expose-headers", _EXPOSED),
        (b"cross-origin-resource-policy", b"cross-origin"),
        (b"vary", b"Origin"),
    ]


def _preflight_headers(headers: Mapping[str, str]) -> list[Header]:
    """Return the headers of the answer to a preflight.

    Any request header is allowed, because the origin is already allowed and the `openai` client for browsers sends
    many.
    """
    requested = headers.get("access-control-request-headers", "authorization, content-type")
    allowed = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", requested.encode("latin-1")),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    if headers.get("access-control-request-private-network") == "true":
        allowed.append((b"access-control-allow-private-network", b"true"))
    return allowed


def _check_content_type(headers: Mapping[str, str]) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            "send the body as JSON, with the header Content-Type: application/json",
            status=415,
            code="unsupported_media_type",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("send the body uncompressed", status=415, code="unsupported_content_encoding")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields the body and then later messages: the client's disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
