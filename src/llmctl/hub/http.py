"""HTTP calls to the Hub, with a time limit, retries where they can help, and a note for each wait.

The client is huggingface_hub's own session, so a program's `set_client_factory` (certificates, proxies) is honoured.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import OfflineError, TokenError
from llmctl.hub import settings
from llmctl.hub.environment import connection_faults, endpoint_fault
from llmctl.hub.http_library import http_library
from llmctl.hub.login import tokens

if TYPE_CHECKING:
    import httpx2

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """The attempts and pauses of a download on a failing network.

    Attributes:
        attempts: Attempts in a row that may bring nothing before the download fails. Bytes that arrive reset the count.
        first_wait_seconds: First pause between two attempts; it doubles, with jitter.
        longest_wait_seconds: Longest pause that llmctl chooses.
        longest_requested_seconds: Longest pause that a server may request (Retry-After).
    """

    attempts: int = 6
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 8.0
    longest_requested_seconds: float = 300.0

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after `failures` consecutive failed attempts: exponential, with jitter."""
        base = min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** max(failures - 1, 0))
        return base * (1 + 0.25 * random.random())  # noqa: S311 (jitter, not a secret)


def requested_pause(response: "httpx2.Response") -> float | None:
    """Return the seconds that a 429 or 503 response asks to wait, or None."""
    from huggingface_hub.utils import parse_ratelimit_headers

    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    return None


def headers(token: str | bool | None = None) -> dict[str, str]:
    """Return the headers of a call to the Hub: the user agent, and the token unless `token` is False.

    Raises:
        UserError: the token, or the file that it is read from, is malformed.
        MachineError: the file cannot be read.
        TokenError: HF_OIDC_RESOURCE is set, and no token can be requested here.
    """
    from huggingface_hub.errors import OIDCError
    from huggingface_hub.utils import build_hf_headers

    from llmctl._version import __version__

    if token is None:
        tokens.token_source()  # reads the file, and explains what is wrong with it
    try:
        built = build_hf_headers(token=token, library_name="llmctl", library_version=__version__)
    except OIDCError as error:
        raise TokenError(
            "HF_OIDC_RESOURCE is set, and no token can be requested here",
            hint="unset it outside of CI, or set HF_OIDC_ID_TOKEN",
        ) from error
    tokens.check_token(built.get("authorization", "").removeprefix("Bearer "))
    return built


def session() -> "httpx2.Client":
    """Return huggingface_hub's client.

    Raises:
        UserError: HF_ENDPOINT, a proxy or a certificate file of the environment cannot be used.
        MachineError: a proxy needs a package that is not installed.
    """
    from huggingface_hub.utils import get_session

    if fault := endpoint_fault(settings.endpoint()):
        raise fault.error()
    try:
        return get_session()
    except (ImportError, ValueError, OSError, http_library().InvalidURL) as error:
        if fault := next(connection_faults(), None):
            raise fault.error() from error
        raise


def timeout() -> "httpx2.Timeout":
    """Return the time limit for each connect, read and write."""
    limit: httpx2.Timeout = http_library().Timeout(settings.timeout_seconds(), pool=None)
    return limit


def bound_other_calls() -> None:
    """Give the calls that huggingface_hub makes by itself (Xet token, login) the same time limit.

    Its own default is to wait for ever. Only for a process of llmctl: it changes the shared client, which a program
    with its own `set_client_factory` would not want.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import hf_request_event_hook

    make_client: Callable[..., httpx2.Client] = http_library().Client

    def client() -> "httpx2.Client":
        hooks: dict[str, list[Callable[..., Any]]] = {"request": [hf_request_event_hook]}
        return make_client(event_hooks=hooks, follow_redirects=True, timeout=timeout())

    set_client_factory(client)


def refuse_if_offline(what: str, *, offline: bool = False) -> None:
    """Check that network access is allowed, before a socket is opened.

    Args:
        what: Subject of the error's sentence, such as "whoami".
        offline: Forbid network access; HF_HUB_OFFLINE forbids it, too.

    Raises:
        OfflineError: the network is forbidden.
    """
    if offline or settings.is_offline():
        why = "HF_HUB_OFFLINE is set" if settings.is_offline() else "--offline was given"
        raise OfflineError(
            f"{what} needs the Hub, and {why}",
            hint="run it again without HF_HUB_OFFLINE and without --offline",
        )


def get_json(
    path: str,
    *,
    token: str | bool | None = None,
    patience: Patience | None = None,
    note: Callable[[str], None] | None = None,
) -> Any:
    """Return the JSON document at `path` below the Hub's address.

    Raises:
        HTTPError: of httpx, raised by huggingface_hub for the status, or last by the transport. Callers turn it into an
            error of llmctl with `error_translation.translate`.
        NotJsonError: the response is not JSON, so not the Hub's.
    """
    from huggingface_hub.utils import hf_raise_for_status

    response = _get(settings.endpoint() + path, token=token, patience=patience or Patience(), note=note)
    hf_raise_for_status(response)
    try:
        return response.json()
    except ValueError:
        raise NotJsonError(response) from None


def get_bytes(url: str, *, start: int, count: int, patience: Patience | None = None) -> bytes:
    """Return `count` bytes of a file on the Hub from `start` on. httpx keeps the token on the Hub's own origin.

    Raises:
        HTTPError: as `get_json`.
    """
    from huggingface_hub.utils import hf_raise_for_status

    range_headers = {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"} if count else {}
    response = _get(
        url, token=None, patience=patience or Patience(), note=None, extra_headers=range_headers, limit=start + count
    )
    hf_raise_for_status(response)
    body: bytes = response.extensions["body"]
    if response.status_code == 200:  # a server without support for ranges sends the file from the beginning
        return body[start : start + count]
    return body[:count]


class NotJsonError(Exception):
    """A response with status 200 that is not JSON, from a captive portal or a proxy instead of the Hub."""

    def __init__(self, response: "httpx2.Response") -> None:
        self.host = response.url.host
        self.content_type = response.headers.get("Content-Type", "").split(";")[0]
        super().__init__(f"{self.host} answered with {self.content_type or 'no content type'}")


def _get(
    url: str,
    *,
    token: str | bool | None,
    patience: Patience,
    note: Callable[[str], None] | None,
    extra_headers: dict[str, str] | None = None,
    limit: int | None = None,
) -> "httpx2.Response":
    """Send a GET request with retries, and return the last response, whatever its status.

    With `limit`, at most that many bytes of a successful response are read; they are in its `extensions["body"]`.
    """
    httpx = http_library()

    failures = 0
    while True:
        try:
            sent = {**headers(token), **(extra_headers or {})}
            response = _once(session(), url, sent, limit)
        except httpx.TransportError as error:
            failures += 1
            if failures >= _attempts(error, patience):
                raise
            pause, why = patience.pause(failures), f"{httpx.URL(url).host} does not answer"
        else:
            failures += 1
            if response.status_code not in RETRIED_STATUSES or failures >= patience.attempts:
                return response
            requested = requested_pause(response)
            if requested is not None and requested > patience.longest_requested_seconds:
                return response
            pause, why = requested if requested is not None else patience.pause(failures), reason(response)
        if note:
            note(f"{why}, waiting {pause:.0f} s" if pause >= 1 else f"{why}, trying again")
        time.sleep(pause)


def _once(session: "httpx2.Client", url: str, sent: dict[str, str], limit: int | None) -> "httpx2.Response":
    """Send a GET request once. With `limit`, read at most that many bytes of the body."""
    if limit is None:
        return session.get(url, headers=sent, timeout=timeout(), follow_redirects=True)
    with session.stream("GET", url, headers=sent, timeout=timeout(), follow_redirects=True) as response:
        if response.is_error:
            response.read()
        body = bytearray()
        for part in response.iter_bytes() if response.is_success else ():
            body += part
            if len(body) >= limit:
                break
        response.extensions["body"] = bytes(body[:limit])
        return response


def reason(response: "httpx2.Response") -> str:
    """Return the reason for another attempt after a response, as text."""
    if response.status_code == 429:
        return "rate limited"
    return f"{response.url.host} answered {response.status_code}"


def _attempts(error: Exception, patience: Patience) -> int:
    """Return the maximum attempts for an error: one or two if it is unlikely to be temporary."""
    httpx = http_library()

    if isinstance(error, (httpx.ProxyError, httpx.UnsupportedProtocol)) or tls_error(error) is not None:
        return 1
    if isinstance(error, httpx.ConnectError):
        return min(2, patience.attempts)
    if isinstance(error, httpx.TimeoutException):
        return min(3, patience.attempts)
    return patience.attempts


def tls_error(error: BaseException) -> Any:
    """Return the TLS error that caused `error`, or None."""
    import ssl

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
