"""Fetching of a picture that a request names by its URL.

Whoever sends requests could use a server that fetches URLs to reach what only the server can reach (SSRF): its own
ports, machines of its network, the metadata of a cloud. So every URL, redirects included, is resolved once, all its
addresses must be public, and the connection goes to one of these addresses, not to the name, which could resolve
differently a moment later (DNS rebinding). Proxies of the environment are not used, since a proxy resolves the name
itself. No cookies, credentials or referrers are sent.
"""

import functools
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from llmctl._version import __version__
from llmctl.errors import RemoteError, UserError
from llmctl.generation.pictures.addresses import is_public
from llmctl.generation.pictures.picture import DEFAULT_LIMITS, PictureLimits
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_URL_CHARACTERS = 8000
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_ADDRESSES_TRIED = 3
_PART_BYTES = 1 << 16
_SEND_THE_PICTURE = "send the picture itself, as a data URL"


def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host in their numeric form, IPv4 first.

    Raises:
        OSError: it has none.
    """
    results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    results.sort(key=lambda result: result[0] != socket.AF_INET)
    return list(dict.fromkeys(str(result[4][0]) for result in results))


def connect(address: str, port: int, seconds: float) -> socket.socket:
    """Connect to an address in its numeric form.

    Raises:
        OSError: there is no connection within `seconds`.
    """
    return socket.create_connection((address, port), timeout=seconds)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS settings of calls to the Hub: certificates and host names are verified."""
    import httpx2

    return httpx2.create_ssl_context()


@dataclass(frozen=True)
class Network:
    """The way to other machines.

    Attributes:
        resolve: Function from a host and a port to its addresses.
        connect: Function that connects to an address and port within some seconds.
        tls: Function that returns the TLS settings.
    """

    resolve: Callable[[str, int], Sequence[str]] = resolve
    connect: Callable[[str, int, float], socket.socket] = connect
    tls: Callable[[], ssl.SSLContext] = tls_context


INTERNET = Network()


def fetch_picture(url: str, limits: PictureLimits = DEFAULT_LIMITS, *, network: Network = INTERNET) -> bytes:
    """Return the file at an http or https URL of a public server. Blocks for up to `limits.fetch_seconds`.

    Error messages name the host only: the rest of a URL may contain a secret.

    Raises:
        UserError: the URL is malformed, leads to an address that is not public or to no file, or the file is too large.
        RemoteError: the server failed, or did not answer in time.
    """
    deadline = time.monotonic() + limits.fetch_seconds
    for _ in range(limits.redirects + 1):
        target = _target_of(url)
        try:
            with _opened(target, network, deadline) as opened:
                answer = _answer(target, opened, limits)
        except TimeoutError as error:
            raise RemoteError(
                f"{target.host} did not deliver the image within {limits.fetch_seconds:g} s", hint=_SEND_THE_PICTURE
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _connection_error(target, error) from error
        if isinstance(answer, bytes):
            return answer
        try:
            url = urljoin(url, answer.location)
        except ValueError as error:
            raise _malformed() from error
    raise UserError(
        f"the URL of an image leads to more than {limits.redirects} redirects", hint="use the URL of the file itself"
    )


@dataclass(frozen=True)
class _Target:
    """A URL in parts. The host is in ASCII, and without the brackets of an IPv6 address."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def _target_of(url: str) -> _Target:
    """Return the parts of a URL.

    Raises:
        UserError: it is malformed, has credentials, or is of another scheme than http and https.
    """
    if len(url) > _URL_CHARACTERS:
        raise UserError(f"the URL of an image is longer than {_URL_CHARACTERS:,} characters", hint=_SEND_THE_PICTURE)
    if any(character <= " " or character in "\x7f\\" for character in url):
        raise UserError("the URL of an image has a space, a backslash or a control character", hint="encode it: %20")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        if parts.scheme not in _PORTS:
            raise UserError("the URL of an image must begin with http:// or https://", hint=_SEND_THE_PICTURE)
        if "@" in parts.netloc:
            raise UserError("the URL of an image must not contain a user or a password", hint=_SEND_THE_PICTURE)
        if not host or "%" in host or port == 0:
            raise ValueError("no host")
        host = host if ":" in host else host.encode("idna").decode("ascii")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~?[]|^`{}\"")
    except ValueError as error:  # a wrong port, a wrong IPv6 address, a name that is too long
        raise _malformed() from error
    return _Target(parts.scheme, host, port or _PORTS[parts.scheme], f"{path}?{query}" if query else path)


def _malformed() -> UserError:
    return UserError("the URL of an image is malformed", hint="write https://host/path")


@contextmanager
def _opened(target: _Target, network: Network, deadline: float) -> "Iterator[_TimedSocket]":
    """Yield a connection to a checked address of the target, with TLS for https.

    Raises:
        UserError: the host is unknown, or one of its addresses is not public.
        OSError: there is no connection, or its certificate is not valid.
    """
    with closing(_connected(target, network, deadline)) as connected:
        if target.scheme == "http":
            yield _TimedSocket(connected, deadline)
            return
        connected.settimeout(_left(deadline))
        with network.tls().wrap_socket(connected, server_hostname=target.host) as encrypted:
            yield _TimedSocket(encrypted, deadline)


def _connected(target: _Target, network: Network, deadline: float) -> socket.socket:
    addresses = _resolved(target, network, deadline)
    if not all(map(is_public, addresses)):
        raise UserError(
            f"the URL of an image leads to {target.host}, which is not a public server", hint=_SEND_THE_PICTURE
        )
    failure: OSError = OSError("no address")
    for number, address in enumerate(addresses[:_ADDRESSES_TRIED], 1):
        left = _left(deadline)
        try:
            return network.connect(address, target.port, left if number == len(addresses) else left / 2)
        except OSError as error:
            failure = error
    raise failure


def _resolved(target: _Target, network: Network, deadline: float) -> Sequence[str]:
    """Return the addresses of the target. The system's resolver has no time limit, so it runs in a thread.

    Raises:
        UserError: there are none.
        TimeoutError: the time is over.
    """
    outcomes: list[Sequence[str] | Exception] = []

    def run() -> None:
        try:
            outcomes.append(network.resolve(target.host, target.port))
        except (OSError, UnicodeError) as error:
            outcomes.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not outcomes:
        raise TimeoutError
    if isinstance(outcomes[0], Exception) or not outcomes[0]:
        raise UserError(f"the host of an image is unknown: {target.host}", hint="check the URL")
    return outcomes[0]


@dataclass(frozen=True)
class _Redirect:
    """The place where the file is, as the server wrote it."""

    location: str


def _answer(target: _Target, opened: "_TimedSocket", limits: PictureLimits) -> bytes | _Redirect:
    """Return the file, or the redirect, that the server answers with.

    Raises:
        UserError: there is no such file, or it is too large.
        RemoteError: the server failed.
        OSError, HTTPException: the connection failed.
    """
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = opened
    headers = {"Host": target.host_header, "User-Agent": f"llmctl/{__version__}", "Accept": "image/*"}
    headers |= {"Accept-Encoding": "identity", "Connection": "close"}  # a compressed answer could unpack to gigabytes
    connection.request("GET", target.path, headers=headers)
    with connection.getresponse() as response:
        location = response.getheader("Location")
        if response.status in _REDIRECTS and location:
            return _Redirect(location.encode("latin-1").decode("utf-8", "replace").strip())
        if response.status != 200:
            kind = RemoteError if response.status >= 500 or response.status == 429 else UserError
            raise kind(f"{target.host} answered {response.status} for the image", hint="check the URL in a browser")
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise UserError(f"{target.host} sent the image compressed, unasked", hint=_SEND_THE_PICTURE)
        return _body(target, response, limits)


def _body(target: _Target, response: http.client.HTTPResponse, limits: PictureLimits) -> bytes:
    too_large = UserError(
        f"the image at {target.host} is larger than {format_bytes(limits.file_bytes)}", hint="use a smaller one"
    )
    if (response.length or 0) > limits.file_bytes:
        raise too_large
    body = io.BytesIO()
    while part := response.read(_PART_BYTES):
        body.write(part)
        if body.tell() > limits.file_bytes:
            raise too_large
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return body.getvalue()


def _connection_error(target: _Target, error: Exception) -> UserError | RemoteError:
    """Return the error for a connection that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return UserError(
            f"the certificate of {target.host} is not valid: {error.verify_message}", hint=_SEND_THE_PICTURE
        )
    reason = getattr(error, "strerror", None) or type(error).__name__
    return RemoteError(
        f"the image could not be fetched from {target.host}: {reason}", hint="try again, or send a data URL"
    )


def _left(deadline: float) -> float:
    """Return the seconds until the deadline.

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _TimedSocket:
    """The part of a socket that http.client uses, with one deadline for everything that is sent and received.

    A time limit for each read would let a server send a byte a second for ever.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected, self._deadline = connected, deadline

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self._connected.settimeout(_left(self._deadline))
        self._connected.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return what is received, as a file."""
        del mode
        return io.BufferedReader(_TimedReader(self._connected, self._deadline))

    def close(self) -> None:
        """Do nothing: http.client closes its socket before it reads the last answer."""


class _TimedReader(io.RawIOBase):
    """A stream of the bytes that a socket receives until a deadline."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected, self._deadline = connected, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        self._connected.settimeout(_left(self._deadline))
        return self._connected.recv_into(buffer)
