"""Calls to the Hub that end: bounded in time, repeated where that can help, and never waiting in silence.

The client is huggingface_hub's own session, so a program's `set_client_factory` (certificates, proxies) is honoured.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import MachineError, OfflineError
from llmctl.hub import settings

if TYPE_CHECKING:
    import httpx2

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How long a download goes on against a network that fails.

    Attributes:
        attempts: How many attempts in a row may bring nothing before it is given up. Bytes that arrive reset the count.
        first_wait_seconds: The first pause between two attempts; it doubles, with jitter.
        longest_wait_seconds: The longest pause of our own choosing.
        longest_asked_seconds: The longest pause that a server may ask for (Retry-After).
    """

    attempts: int = 6
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 8.0
    longest_asked_seconds: float = 300.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after `failures` attempts in a row that failed: exponential, with full jitter upwards."""
        base = min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** max(failures - 1, 0))
        return base * (1 + 0.25 * random.random())  # noqa: S311 (jitter, not a secret)


def asked_pause(response: "httpx2.Response") -> float | None:
    """The seconds that a 429 or 503 answer asks to wait, or None."""
    from huggingface_hub.utils import parse_ratelimit_headers

    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    return None


def headers(token: str | bool | None = None) -> dict[str, str]:
    """The headers of a call to the Hub: who is calling, and the token unless `token` is False."""
    from huggingface_hub.utils import build_hf_headers

    from llmctl._version import __version__

    try:
        return build_hf_headers(token=token, library_name="llmctl", library_version=__version__)
    except OSError as error:  # it reads the token file
        raise token_unreadable(error) from error


def token_unreadable(error: OSError) -> MachineError:
    """The error for a token file that is there and cannot be read: made by root, or under a path that cannot be."""
    return MachineError(
        f"cannot read the token file {error.filename}: {error.strerror}",
        hint="mend its owner (chown), or set HF_TOKEN or HF_TOKEN_PATH",
    )


def timeout() -> "httpx2.Timeout":
    """The bound for each connect, read and write."""
    import httpx2

    seconds = settings.timeout_seconds()
    return httpx2.Timeout(seconds, pool=None)


def bound_other_calls() -> None:
    """Give the calls that huggingface_hub makes by itself (its Xet token, its login) the same bound in time.

    Its own default is to wait for ever. Only for a process that is llmctl's own: it changes the shared client, and
    is not for a program that has its own `set_client_factory`.
    """
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import hf_request_event_hook

    def client() -> "httpx2.Client":
        hooks: dict[str, list[Callable[..., Any]]] = {"request": [hf_request_event_hook]}
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=timeout())

    set_client_factory(client)


def refuse_if_offline(what: str, *, offline: bool = False) -> None:
    """Raise before a socket would be opened where the network is forbidden.

    Args:
        what: What would need the network, as the beginning of a sentence: "whoami".
        offline: Whether the caller forbids it; HF_HUB_OFFLINE does so in any case.

    Raises:
        OfflineError: Where either forbids it.
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
    """The JSON document at `path` below the Hub's address.

    Raises:
        httpx2.HTTPError: What huggingface_hub raises for the status, or what the transport raised last. The callers
            turn it into an error of llmctl with `access.explain`, which knows what was asked for.
        NotJsonError: The answer is not JSON: not the Hub's.
    """
    from huggingface_hub.utils import hf_raise_for_status

    response = _get(settings.endpoint() + path, token=token, patience=patience or Patience(), note=note)
    hf_raise_for_status(response)
    try:
        return response.json()
    except ValueError:
        raise NotJsonError(response) from None


def get_bytes(url: str, *, start: int, count: int, patience: Patience | None = None) -> bytes:
    """`count` bytes of a file of the Hub from `start` on. The token stays on the Hub's own origin (httpx2 sees to it).

    Raises:
        httpx2.HTTPError: As `get_json`.
    """
    from huggingface_hub.utils import hf_raise_for_status

    more = {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"} if count else {}
    response = _get(url, token=None, patience=patience or Patience(), note=None, more=more, limit=start + count)
    hf_raise_for_status(response)
    body: bytes = response.extensions["body"]
    if response.status_code == 200:  # a server that does not know ranges began with the first byte
        return body[start : start + count]
    return body[:count]


class NotJsonError(Exception):
    """An answer of status 200 that is no JSON: a captive portal or a proxy answered in the Hub's place."""

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
    more: dict[str, str] | None = None,
    limit: int | None = None,
) -> "httpx2.Response":
    """GET, repeated while repeating can help. The last answer is returned whatever its status.

    With `limit` at most that many bytes of a good answer are read; they are in its `extensions["body"]`.
    """
    import httpx2
    from huggingface_hub.utils import get_session

    failures = 0
    while True:
        try:
            sent = {**headers(token), **(more or {})}
            response = _once(get_session(), url, sent, limit)
        except httpx2.TransportError as error:
            failures += 1
            if failures >= _attempts(error, patience):
                raise
            pause, why = patience.pause(failures), f"{httpx2.URL(url).host} does not answer"
        else:
            failures += 1
            if response.status_code not in RETRIED_STATUSES or failures >= patience.attempts:
                return response
            asked = asked_pause(response)
            if asked is not None and asked > patience.longest_asked_seconds:
                return response
            pause, why = asked if asked is not None else patience.pause(failures), reason(response)
        if note:
            note(f"{why}, waiting {pause:.0f} s" if pause >= 1 else f"{why}, trying again")
        time.sleep(pause)


def _once(session: "httpx2.Client", url: str, sent: dict[str, str], limit: int | None) -> "httpx2.Response":
    """One GET; with `limit`, no more of the body than that."""
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
    """Why an answer calls for another attempt, in words."""
    if response.status_code == 429:
        return "rate limited"
    return f"{response.url.host} answered {response.status_code}"


def _attempts(error: Exception, patience: Patience) -> int:
    """How many attempts an error is worth: one that will not go away by itself is worth one or two."""
    import httpx2

    if isinstance(error, (httpx2.ProxyError, httpx2.UnsupportedProtocol)) or tls_error(error) is not None:
        return 1
    if isinstance(error, httpx2.ConnectError):
        return min(2, patience.attempts)
    if isinstance(error, httpx2.TimeoutException):
        return min(3, patience.attempts)
    return patience.attempts


def tls_error(error: BaseException) -> Any:
    """The TLS error that `error` was born from, or None."""
    import ssl

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
