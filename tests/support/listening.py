"""A real uvicorn in a thread, and low-level clients for it."""

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
    """A response: status, headers with names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error, after a check of OpenAI's shape."""
        document = json.loads(self.body)
        assert set(document) == {"error"}, document
        assert set(document["error"]) == {"message", "type", "param", "code"}, document
        assert isinstance(document["error"]["message"], str)
        assert document["error"]["message"]
        return dict(document["error"])


@contextlib.contextmanager
def listening(app: Any, **limits: Any) -> Iterator[int]:
    """Serve an ASGI app during the context; yield the port."""
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
    """Send one request. A body that is not bytes is sent as JSON."""
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
    """Yield a bare connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        yield opened


def answer_on(opened: socket.socket, method: str = "POST") -> Answer:
    """Return the response on a bare connection."""
    response = http.client.HTTPResponse(opened, method=method)
    response.begin()
    return _read(response)


def is_closed(opened: socket.socket) -> bool:
    """Return True if the other side closes the connection within the socket's timeout."""
    try:
        while opened.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True
