"""What uvicorn leaves open: connections that cost nothing to hold.

uvicorn has no deadline for the head of a request, none for a client that does not read its answer, and answers a flood
of connections one by one. This protocol has them, and answers in OpenAI's shape what never becomes a request.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from llmctl.server.http_errors import RequestError
from llmctl.server.security.guard import HEAD_BYTES, App


@dataclass(frozen=True)
class Patience:
    """How long a connection may do nothing.

    Attributes:
        head_seconds: From the first byte of a request (of a connection, for the first) to the end of its headers.
        idle_seconds: Between two requests.
        stall_seconds: A client that takes nothing of its answer for so long is gone.
        connections: So many at once; further ones are answered 503.
    """

    head_seconds: float = 10.0
    idle_seconds: int = 30
    stall_seconds: float = 30.0
    connections: int = 512


def uvicorn_config(app: App, *, host: str, port: int, patience: Patience | None = None, **more: Any) -> Config:
    """uvicorn's settings for a guarded app: no access log of its own (it has query strings in it), no trust in
    headers of a proxy, no Server header, no web sockets."""
    patience = patience or Patience()
    return Config(
        app,
        host=host,
        port=port,
        http=type("PatientProtocol", (_PatientProtocol,), {"patience": patience}),
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=patience.idle_seconds,
        h11_max_incomplete_event_size=HEAD_BYTES,
        **more,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which a second signal ends at once, whichever it is. uvicorn itself hears only Ctrl-C twice."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for every signal."""
        if self.should_exit:
            self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # it would show a traceback for each request that is cut
        super().handle_exit(sig, frame)


class _Deadline:
    """Something that happens unless it is stopped in time. Its state: the timer that runs."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], None]) -> None:
        """One that runs already goes on as it is."""
        if self._timer is None:
            self._timer = loop.call_later(seconds, then)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _PatientProtocol(H11Protocol):
    """One connection."""

    patience = Patience()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head, self._stall = _Deadline(), _Deadline()
        super().connection_made(transport)
        self.access_log = False  # it writes queries down; whether Config(access_log=False) holds depends on loggers
        transport.set_write_buffer_limits(0)  # a client that takes nothing is noticed by the first byte that stays here
        if len(self.connections) > self.patience.connections:
            self._refuse(RequestError("too many connections", status=503, headers={"Retry-After": "1"}))
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        else:
            self._head.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.stop()
        self._stall.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall.start(self.loop, self.patience.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stall.stop()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, called while it handles h11's error."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            msg = f"the request line and the headers have more than {HEAD_BYTES} bytes"
        self._refuse(RequestError(msg, status=status))

    def _expect_head(self) -> None:
        """From now on the head of a request has to arrive in time."""
        self._head.start(self.loop, self.patience.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            seconds = self.patience.head_seconds
            self._refuse(RequestError(f"the headers were not complete after {seconds:g} seconds", status=408))
        else:  # an answer to nothing could be taken for one to a request that is just on its way
            self.transport.close()

    def _refuse(self, problem: RequestError) -> None:
        """Answer outside of any request, and close."""
        if self.transport.is_closing():
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(problem.body()).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            *problem.headers.items(),
        ]
        start = h11.Response(status_code=problem.status, headers=headers, reason=STATUS_PHRASES[problem.status])
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
