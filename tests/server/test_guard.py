"""The guard around an app, on a real server and port."""

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llmctl.server.security.guard import Guard, Rules
from llmctl.server.security.keys import Keys
from support.listening import Answer, answer_on, call, connected, is_closed, listening

KEY = "k3y-of-the-first-client"
OTHER = "k3y-of-the-second-client"
BODY_BYTES = 10_000


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the path and the length of the body."""
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/bug":
        raise RuntimeError("secret of the inside")
    if scope["path"] == "/page":
        headers = [
            (b"content-type", b"text/html"),
            (b"cache-control", b"max-age=60"),
            (b"X-Frame-Options", b"SAMEORIGIN"),
        ]
    else:
        headers = [(b"content-type", b"application/json")]
    body, has_more = b"", scope["method"] == "POST"
    while has_more:
        message = await receive()
        body, has_more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    document = {"path": scope["path"], "bytes": len(body)}
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Yield the port of a server on the loopback without a key."""
    rules = Rules(body_bytes=BODY_BYTES, body_seconds=1.0, json_depth=8, origins=("https://app.example",))
    with listening(Guard(echo, rules), head_seconds=1.0, stall_seconds=1.0, connections=20) as number:
        yield number


@pytest.fixture(scope="module")
def locked_port() -> Iterator[int]:
    """Yield the port of a server with keys and an open page."""
    rules = Rules(
        keys=Keys.from_plain([KEY, OTHER], source="a test"),
        open_paths=frozenset({"/page", "/health"}),
        origins=("https://app.example",),
    )
    with listening(Guard(echo, rules)) as number:
        yield number


@pytest.fixture(autouse=True)
def _healthy_after(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check after every test that the next client is answered."""
    yield
    for name in {"port", "locked_port"} & set(request.fixturenames):
        headers = {"Authorization": f"Bearer {KEY}"}
        assert call(request.getfixturevalue(name), body={"after": 1}, headers=headers).status == 200


# -- names and pages


def test_a_rebound_name_is_refused_on_every_path(port: int) -> None:
    for path in ("/", "/page", "/v1/models", "/no/such/path"):
        answer = call(port, "GET", path, headers={"Host": "evil.example"})
        assert answer.status == 403
        assert answer.error["code"] == "host_not_allowed"
    assert call(port, "GET", headers={"Host": f"localhost:{port}"}).status == 200


def test_a_page_of_another_origin_is_refused(port: int) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:3000"):
        answer = call(port, body={}, headers={"Origin": origin})
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers
    assert call(port, body={}, headers={"Origin": f"http://127.0.0.1:{port}"}).status == 200


def test_a_form_of_another_page_cannot_send_json_as_text(port: int) -> None:
    """A form may send text/plain to any server without a preflight, so it must not be parsed as JSON."""
    answer = call(port, body=b'{"a": 1}', headers={"Content-Type": "text/plain"})
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


def test_a_listed_origin_passes_the_preflight_and_can_read(port: int) -> None:
    preflight = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    answer = call(port, "OPTIONS", "/v1/chat/completions", headers=preflight)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    answer = call(port, body={}, headers={"Origin": "https://app.example"})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
    assert answer.headers["vary"] == "Origin"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "access-control-allow-credentials" not in answer.headers


def test_the_preflight_of_an_unlisted_origin_is_refused(port: int) -> None:
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = call(port, "OPTIONS", headers=preflight)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_without_an_origin_there_are_no_cors_headers(port: int) -> None:
    assert not [name for name in call(port, body={}).headers if name.startswith("access-control")]


# -- keys


def test_every_key_is_accepted_and_nothing_else(locked_port: int) -> None:
    for key in (KEY, OTHER):
        assert call(locked_port, body={}, headers={"Authorization": f"Bearer {key}"}).status == 200
    assert call(locked_port, body={}, headers={"Authorization": f"bearer  {KEY}"}).status == 200
    for wrong in (
        None,
        "",
        KEY,
        f"Basic {KEY}",
        "Bearer",
        f"Bearer {KEY}x",
        f"Bearer {KEY}, Bearer {KEY}",
        "Bearer \xff",
    ):
        headers = {} if wrong is None else {"Authorization": wrong}
        answer = call(locked_port, body={}, headers=headers)
        assert answer.status == 401, wrong
        assert answer.error["type"] == "invalid_request_error"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.body.decode()


def test_every_path_needs_a_key_except_open_ones_for_reading(locked_port: int) -> None:
    for path in (
        "/",
        "/v1/models",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/nothing/here",
        "/page/",
        "//page",
        "/page/x",
    ):
        assert call(locked_port, "GET", path).status == 401, path
    assert call(locked_port, "GET", "/page").status == 200
    assert call(locked_port, "GET", "/health").status == 200
    assert call(locked_port, "POST", "/page", body={}).status == 401


def test_a_preflight_needs_no_key_but_the_request_does(locked_port: int) -> None:
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert call(locked_port, "OPTIONS", headers=preflight).status == 204
    assert call(locked_port, body={}, headers={"Origin": "https://app.example"}).status == 401
    assert call(locked_port, "OPTIONS", headers={"Origin": "https://app.example"}).status == 401


def test_the_body_is_not_read_without_a_key(locked_port: int) -> None:
    with connected(locked_port) as opened:
        opened.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
        assert answer_on(opened).status == 401


def test_the_log_has_no_key_and_no_query(locked_port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    call(
        locked_port, path="/x?token=query-secret", body={"a": "body-secret"}, headers={"Authorization": f"Bearer {KEY}"}
    )
    call(locked_port, path="/y", body={}, headers={"Authorization": "Bearer guessed-secret"})
    call(locked_port, "GET", "/bug?token=query-secret", headers={"Authorization": f"Bearer {OTHER}"})
    with connected(locked_port) as opened:
        opened.sendall(b"NONSENSE header-secret\r\n\r\n")
        assert answer_on(opened).status == 400
    for line in ("POST /x 200", "POST /y 401", "GET /bug 500"):
        _until(lambda line=line: line in caplog.text)
    for secret in (KEY, OTHER, "query-secret", "body-secret", "guessed-secret", "header-secret"):
        assert secret not in caplog.text


def test_a_path_cannot_forge_a_log_line(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call(port, "GET", "/a%0AGET%20/forged%20200%1b[31m")
    _until(lambda: "forged" in caplog.text)
    [line] = [r.getMessage() for r in caplog.records if "forged" in r.getMessage()]
    assert "\n" not in line
    assert "\x1b" not in line


def test_a_client_cannot_set_its_address_in_a_header(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call(port, "GET", "/who", headers={"X-Forwarded-For": "6.6.6.6"})
    _until(lambda: "127.0.0.1 GET /who" in caplog.text)


# -- bodies


def test_a_body_with_a_declared_length_over_the_limit_is_refused_before_it_is_sent(port: int) -> None:
    with connected(port) as opened:
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BODY_BYTES + 1}\r\nExpect: 100-continue\r\n\r\n"
        opened.sendall(head.encode())
        answer = answer_on(opened)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert is_closed(opened)


def test_a_client_that_sends_all_of_a_large_body_first_reads_the_answer(port: int) -> None:
    assert call(port, body=b'"' + b"x" * 30_000_000 + b'"').status == 413
    assert call(port, body=b'"' + b"x" * (BODY_BYTES - 2) + b'"').status == 200


def test_a_chunked_body_is_counted_while_it_arrives(port: int) -> None:
    with connected(port) as opened:
        opened.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            opened.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        answer = answer_on(opened)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert is_closed(opened)


def test_a_client_that_never_stops_sending_is_cut_off(port: int) -> None:
    def send_without_end(opened: socket.socket) -> None:
        opened.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            opened.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            time.sleep(0.01)

    with connected(port) as opened, pytest.raises(ConnectionError):
        send_without_end(opened)


def test_a_slow_body_is_cut_off(port: int) -> None:
    with connected(port) as opened:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n"
        opened.sendall(head)
        drip = _Drip(opened, b"[" * 400, every_seconds=0.2)
        answer = answer_on(opened)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert is_closed(opened)
        drip.join()


@pytest.mark.parametrize("open_with", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [9, 150, 500, 1600])
def test_deep_json_is_a_400(port: int, open_with: bytes, depth: int) -> None:
    """1,600 levels exceed Python's stack; 150 are within the parser's limit."""
    close = b"]" if open_with == b"[" else b"}"
    answer = call(port, body=open_with * depth + b"1" + close * depth)
    assert (answer.status, answer.error["code"]) == (400, "json_too_deep")
    assert call(port, body=open_with * 8 + b"1" + close * 8).status == 200
    assert call(port, body=open_with * depth).status == 400  # unclosed


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"nonsense", b"{'a': 1}", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1}{"b": 2}', b"\xff\xfe{}",
        b'"\\ud800"', b'{"a": "\xff"}', b"\x00", b" ", b'{"a": ' + b"9" * 5000 + b"}", b"[1,]", b'"tab\tinside"',
    ],
)  # fmt: skip
def test_a_body_that_is_not_strict_json_is_a_400(port: int, body: bytes) -> None:
    answer = call(port, body=body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")


def test_json_with_too_many_lists_is_a_400() -> None:
    from llmctl.server.http_errors import RequestError
    from llmctl.server.request_body import MAX_CONTAINERS, check_json

    with pytest.raises(RequestError) as caught:
        check_json(b"[" + b"[]," * MAX_CONTAINERS + b"[]]", max_depth=64)
    assert (caught.value.status, caught.value.code) == (400, "json_too_large")


def test_a_body_of_many_small_values_is_refused_before_it_takes_memory() -> None:
    from llmctl.server.http_errors import RequestError
    from llmctl.server.request_body import MAX_VALUES, check_json

    with pytest.raises(RequestError, match="commas") as caught:
        check_json(b"[1" + b",1" * (MAX_VALUES + 1) + b"]", max_depth=64)
    assert (caught.value.status, caught.value.code) == (400, "json_too_large")


def test_another_content_type_is_refused(port: int) -> None:
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", ""):
        assert call(port, body=b"{}", headers={"Content-Type": kind}).status == 415
    assert call(port, body=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}).status == 200
    assert call(port, body=b"{}", headers={"Content-Encoding": "gzip"}).status == 415


def test_the_app_gets_the_whole_body(port: int) -> None:
    with connected(port) as opened:
        opened.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for part in (b'{"a": "', b"x" * 500, b'"}'):
            opened.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            time.sleep(0.05)
        opened.sendall(b"0\r\n\r\n")
        assert json.loads(answer_on(opened).body)["bytes"] == 509


# -- answers


def test_every_answer_has_the_security_headers(port: int) -> None:
    answers = [
        call(port, body={}),
        call(port, "GET", "/page"),
        call(port, body=b"{"),
        call(port, "GET", "/bug"),
        call(port, "GET", headers={"Host": "evil.example"}),
    ]
    assert [answer.status for answer in answers] == [200, 200, 400, 500, 403]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert "http" not in policy
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "server" not in answer.headers
    assert [answer.headers["cache-control"] for answer in answers] == ["no-store", "max-age=60", *["no-store"] * 3]
    assert [answer.headers["x-frame-options"] for answer in answers] == ["DENY", "SAMEORIGIN", *["DENY"] * 3]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 5


def test_a_bug_is_a_500_that_reveals_no_internals(port: int, caplog: pytest.LogCaptureFixture) -> None:
    answer = call(port, "GET", "/bug")
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert b"inside" not in answer.body
    assert b"RuntimeError" not in answer.body
    assert "RuntimeError: secret of the inside" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


# -- connections


def test_slow_headers_are_cut_off(port: int) -> None:
    with connected(port) as opened:
        drip = _Drip(opened, b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 100, every_seconds=0.05)
        answer = answer_on(opened)
        assert answer.status == 408
        assert answer.error
        assert is_closed(opened)
        drip.join()


def test_slow_headers_of_a_second_request_are_cut_off_too(port: int) -> None:
    with connected(port) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_on(opened).status == 200
        drip = _Drip(opened, b"GET / HTTP/1.1\r\n" + b"x" * 100, every_seconds=0.05)
        assert answer_on(opened).status == 408
        drip.join()


def test_an_idle_connection_is_closed_without_a_response(port: int) -> None:
    with connected(port) as opened:
        opened.settimeout(5)
        assert opened.recv(100) == b""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(3000)) + b"\r\n", 431),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000, 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 403),  # HTTP/1.0 may omit Host, but then no name is allowed
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", 400),
    ],
)
def test_invalid_http_is_answered_in_openais_shape(port: int, head: bytes, status: int) -> None:
    with connected(port) as opened:
        with contextlib.suppress(ConnectionError):
            opened.sendall(head)
        answer = answer_on(opened)
        assert answer.status == status
        assert answer.error
        assert is_closed(opened)


def test_an_invalid_chunk_ends_the_request(port: int) -> None:
    with connected(port) as opened:
        opened.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        answer = answer_on(opened)
        assert answer.status == 400
        assert answer.error


def test_invalid_input_after_a_refusal_ends_the_connection(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with connected(port) as opened:
        opened.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        opened.sendall(b"2ee0\r\n" + b"x" * 12_000 + b"\r\n")
        assert answer_on(opened).status == 413
        opened.sendall(b"nonsense\r\n")
        assert is_closed(opened)
    assert "Traceback" not in caplog.text


def test_connections_over_the_limit_are_refused(port: int) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(port)) for _ in range(20)]
        with connected(port) as opened:
            answer = answer_on(opened, "GET")
            assert answer.status == 503
            assert answer.error
            assert answer.headers["retry-after"]
        assert held
    _until(lambda: _answer_or_none(port) is not None)


def test_the_app_learns_that_a_client_has_disconnected_after_its_body() -> None:
    disconnected = threading.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        kinds = [(await receive())["type"] for _ in range(2)]
        if kinds == ["http.request", "http.disconnect"]:
            disconnected.set()

    with listening(Guard(waiting, Rules())) as number:
        with connected(number) as opened:
            head = (
                b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            opened.sendall(head)
            assert not disconnected.wait(0.2)
        assert disconnected.wait(5)


def test_a_client_that_does_not_read_its_response_is_cut_off_and_the_app_learns_it() -> None:
    disconnected = threading.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        if (await receive())["type"] == "http.disconnect":
            disconnected.set()

    with listening(Guard(flood, Rules()), stall_seconds=0.5) as number, connected(number) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert disconnected.wait(10)


def test_web_sockets_are_refused(port: int) -> None:
    with connected(port) as opened:
        opened.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert answer_on(opened).status == 200
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(echo, Rules())({"type": "websocket"}, send, send))  # for a server that supports them
    assert [message["type"] for message in sent] == ["websocket.close"]


class _Drip(threading.Thread):
    """Sends bytes one by one until the other side closes."""

    def __init__(self, opened: Any, data: bytes, *, every_seconds: float) -> None:
        super().__init__(daemon=True)
        self.opened, self.data, self.every_seconds = opened, data, every_seconds
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            for byte in self.data:
                self.opened.sendall(bytes([byte]))
                time.sleep(self.every_seconds)


def _answer_or_none(port: int) -> Answer | None:
    try:
        answer = call(port, "GET")
    except OSError:
        return None
    return answer if answer.status == 200 else None


def _until(condition: Any, *, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
