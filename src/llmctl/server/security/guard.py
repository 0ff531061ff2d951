"""What stands around the whole app: it decides who comes in, and with what.

Plain ASGI without a framework, so it guards pages, documentation and unknown paths as it guards the API. The order is
that of what costs least: Host, Origin, key, and only then the body.
"""

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from llmctl.server.http_errors import RequestError, error_of
from llmctl.server.request_body import Gone, Message, Receive, check_json, discard_rest, read_body
from llmctl.server.security.hosts import host_is_let_in, host_names, origin_is_let_in, origin_is_listed
from llmctl.server.security.keys import Keys

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

access_log = logging.getLogger("llmctl.serve.access")
_log = logging.getLogger("llmctl.serve")

# No request leaves the page but to its own server, no script or style stands inside the HTML, nobody frames it.
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
_EXPOSED = b"x-request-id, retry-after"
_METHODS = b"GET, POST, DELETE, OPTIONS"
_PREFLIGHT_SECONDS = b"600"


@dataclass(frozen=True)
class Rules:
    """Who comes in, and with what.

    Attributes:
        hosts: What a Host header may say (`host_names`).
        origins: Origins of pages that may use the server besides its own; `*` for all of them.
        keys: The API keys, or None where none is needed.
        open_paths: What can be read without a key: the files of the page, whether the server is well.
        body_bytes: The longest body.
        body_seconds: The time for all of a body to arrive.
        json_depth: So many lists and objects may lie in each other.
    """

    hosts: tuple[str, ...] = host_names("127.0.0.1")
    origins: tuple[str, ...] = ()
    keys: Keys | None = None
    open_paths: frozenset[str] = frozenset()
    body_bytes: int = 4 * 1024 * 1024
    body_seconds: float = 30.0
    json_depth: int = 64

    def to_json(self) -> str:
        """For a guard in another process; of keys only their hashes."""
        digests = [digest.hex() for digest in self.keys.digests] if self.keys else []
        return json.dumps({**vars(self), "open_paths": sorted(self.open_paths), "keys": digests})

    @classmethod
    def from_json(cls, text: str) -> "Rules":
        """What `to_json` wrote."""
        said = json.loads(text)
        digests = tuple(bytes.fromhex(digest) for digest in said.pop("keys"))
        lists = {name: tuple(said.pop(name)) for name in ("hosts", "origins")}
        keys = Keys(digests, "llmctl") if digests else None
        return cls(**{**said, **lists, "open_paths": frozenset(said["open_paths"]), "keys": keys})


class Guard:
    """The app, guarded.

    Every answer gets the security headers and an id; whatever is refused, and every bug, is answered in OpenAI's shape.

    Args:
        app: Any ASGI app.
        rules: Who comes in.
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
        answer = _Answer(scope, send, _cors_headers(headers, self.rules))
        scope.setdefault("state", {})["request_id"] = answer.request_id
        try:
            self._let_in(scope, headers)
            if _is_preflight(scope, headers):
                await answer.send_empty(_preflight_headers(headers))
                return
            await self.app(scope, await self._checked_body(headers, receive), answer.send)
        except Gone:
            pass
        except RequestError as problem:
            await answer.refuse(problem, receive)
        except Exception as error:  # noqa: BLE001 (it is logged whole, and the next request is not its victim)
            _log.exception("%s: a bug", answer.request_id)
            await answer.refuse(error_of(error), receive)
        finally:
            answer.note()

    def _let_in(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raises a problem for whoever may not come in."""
        rules = self.rules
        host, origin = headers.get("host"), headers.get("origin")
        if _head_bytes(scope) > HEAD_BYTES:  # the server's own limit holds only while a head is not complete
            raise RequestError(f"the request line and the headers have more than {HEAD_BYTES} bytes", status=431)
        if not host_is_let_in(host, rules.hosts):
            raise RequestError(
                "this server does not answer to the name in the Host header; serve.allowed_hosts lists its names",
                status=403,
                code="host_not_allowed",
            )
        if origin is not None and not origin_is_let_in(origin, host, rules.origins):
            raise RequestError(
                "pages of this origin may not use this server; serve.allowed_origins lists those that may",
                status=403,
                code="origin_not_allowed",
            )
        is_open = scope["method"] in ("GET", "HEAD") and scope["path"] in rules.open_paths
        if rules.keys is None or is_open or _is_preflight(scope, headers):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthorized("an API key is needed, as the header Authorization: Bearer KEY", None)
        if not rules.keys.open_to(key.strip().encode("latin-1")):
            raise _unauthorized("the API key is not one of this server's", "invalid_api_key")

    async def _checked_body(self, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Read the body, and give back what hands it on; None is read where there is none."""
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            return receive
        rules = self.rules
        body = await read_body(headers, receive, most_bytes=rules.body_bytes, seconds=rules.body_seconds)
        if body:
            _refuse_other_types(headers)
            check_json(body, most_depth=rules.json_depth)
        return _replay(body, receive)


class _Answer:
    """The answer to one request on its way out. Its state: what has been sent of it."""

    def __init__(self, scope: Scope, send: Send, cors: list[Header]) -> None:
        self.request_id = f"req_{uuid.uuid4().hex}"
        self._scope, self._send, self._cors = scope, send, cors
        self._status: int | None = None
        self._started = time.monotonic()

    async def send(self, message: Message) -> None:
        """ASGI's send, with our headers on what begins an answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own = [(b"x-request-id", self.request_id.encode()), *_SECURITY_HEADERS, *self._cors]
            if not self._cors:
                own.append((b"cross-origin-resource-policy", b"same-origin"))
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            if b"cache-control" not in names:
                own.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*given, *(header for header in own if header[0] not in names)]}
        await self._send(message)

    async def send_empty(self, headers: list[Header]) -> None:
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})

    async def refuse(self, problem: RequestError, receive: Receive) -> None:
        """Answer with a problem, and close the connection: what is left of the request is not read."""
        if self._status is not None:  # too late for a status; uvicorn closes an answer that was left unfinished
            return
        body = json.dumps(problem.body()).encode()
        headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await discard_rest(receive)
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def note(self) -> None:
        """One line in the access log: neither the query nor any header, which may carry secrets."""
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
    """The headers of a request, names in lower case; those that come more than once are joined by commas."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _head_bytes(scope: Scope) -> int:
    line = len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b""))
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _unauthorized(message: str, code: str | None) -> RequestError:
    return RequestError(message, status=401, code=code, headers={"WWW-Authenticate": "Bearer"})


def _is_preflight(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks, before it sends a page's request, if it may."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _cors_headers(headers: Mapping[str, str], rules: Rules) -> list[Header]:
    """What tells a browser that a page of a listed origin may read the answer."""
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
    """Which requests a page may send. The `openai` client for browsers has many headers of its own: all are let in,
    since the origin has been."""
    asked = headers.get("access-control-request-headers", "authorization, content-type")
    found = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", asked.encode("latin-1")),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    if headers.get("access-control-request-private-network") == "true":
        found.append((b"access-control-allow-private-network", b"true"))
    return found


def _refuse_other_types(headers: Mapping[str, str]) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            "send the body as JSON, with the header Content-Type: application/json",
            status=415,
            code="unsupported_media_type",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("send the body uncompressed", status=415, code="unsupported_content_encoding")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what comes after it: that the client goes away."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
