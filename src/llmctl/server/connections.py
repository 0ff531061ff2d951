"""Connection limits that uvicorn lacks.

uvicorn has no deadline for the head of a request, no deadline for a client that does not read its response, and no
limit of connections. This protocol adds them. Errors have OpenAI's shape even if a request never becomes complete.
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
from llmctl.server.security.guard import HEAD_BYTES, HEAD_TOO_LARGE, App


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        head_seconds: Maximum time for the head of a request, from its first byte (for the first request, from the
            connection).
        idle_seconds: Maximum time between two requests.
        stall_seconds: Maximum time in which a client reads nothing of its response; then the connection is aborted.
        connections: Maximum number of simultaneous connections; further ones get 503.
    """

    head_seconds: float = 10.0
    idle_seconds: int = 30
    stall_seconds: float = 30.0
    connections: int = 512


def uvicorn_config(
    app: App, *, host: str, port: int, limits: ConnectionLimits | None = None, **settings: Any
) -> Config:
    """Return uvicorn's settings for a guarded app: no web sockets, no Server header, and no trust in a proxy's headers.

    uvicorn's own access log stays off, since it contains query strings.
    """
    limits = limits or ConnectionLimits()
    return Config(
        app,
        host=host,
        port=port,
        http=type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits}),
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle_seconds,
        h11_max_incomplete_event_size=HEAD_BYTES,
        **settings,
    )


class Server(uvicorn.Server):
    """uvicorn's server, except that any second signal stops it at once; in uvicorn, only a second Ctrl-C does."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            # It would log a traceback for each interrupted request.
            logging.getLogger("uvicorn.error").disabled = True
        super().handle_exit(sig, frame)


class _Deadline:
    """A function to call unless the deadline is stopped in time. Its state: the running timer."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], None]) -> None:
        """Start the timer if it is not running."""
        if self._timer is None:
            self._timer = loop.call_later(seconds, then)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _LimitedProtocol(H11Protocol):
    """One connection. Its state: its two deadlines."""

    limits = ConnectionLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head, self._stall = _Deadline(), _Deadline()
        super().connection_made(transport)
        self.access_log = False  # it logs queries; Config(access_log=False) depends on loggers
        transport.set_write_buffer_limits(0)  # the first unsent byte reveals a client that does not read
        if len(self.connections) > self.limits.connections:
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
        self._stall.start(self.loop, self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stall.stop()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer input that is not HTTP; uvicorn calls this while it handles h11's error."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            msg = HEAD_TOO_LARGE
        self._refuse(RequestError(msg, status=status))

    def _expect_head(self) -> None:
        """Start the deadline for the head of the next request."""
        self._head.start(self.loop, self.limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            seconds = self.limits.head_seconds
            self._refuse(RequestError(f"the headers were not complete after {seconds:g} seconds", status=408))
        else:  # a client could mistake an error for the response to a request that it is just sending
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Send an error that does not belong to a request, and close the connection."""
        if self.transport.is_closing():
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(error.body()).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            *error.headers.items(),
        ]
        start = h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status])
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
