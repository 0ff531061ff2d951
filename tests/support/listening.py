"""A real uvicorn in a thread, and clients that speak to it byte by byte."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What came back: the status, the headers with names in lower case, the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error, which has OpenAI's shape or the test fails."""
        document = json.loads(self.body)
        assert set(document) == {"error"}, document
        assert set(document["error"]) == {"message", "type", "param", "code"}, document
        assert isinstance(document["error"]["message"], str)
        assert document["error"]["message"]
        return dict(document["error"])


@contextlib.contextmanager
def listening(app: Any, **limits: Any) -> Iterator[int]:
    """The port on which an ASGI app is served while the context lasts."""
    import uvicorn

    from llmctl.server.connections import ConnectionLimits, uvicorn_config

    config = uvicorn_config(app, host="127.0.0.1", port=0, limits=ConnectionLimits(**limits), log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def call(
    port: int, method: str = "POST", path: str = "/", body: Any = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request. A body that is not bytes is sent as JSON. `Host: None` in `headers` sends the usual one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None and "Content-Type" not in sent:
        sent["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body, sent)
        return _read(connection.getresponse())
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A bare connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        yield opened


def answer_on(opened: socket.socket, method: str = "POST") -> Answer:
    """What comes back on a bare connection."""
    response = http.client.HTTPResponse(opened, method=method)
    response.begin()
    return _read(response)


def is_closed(opened: socket.socket) -> bool:
    """Whether the other side ends the connection, in the time that the socket waits."""
    try:
        while opened.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True
