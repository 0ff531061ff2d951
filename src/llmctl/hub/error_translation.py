"""The translation of huggingface_hub's and httpx's exceptions into errors of llmctl.

The cause is found by type, status and header (`X-Error-Code`). If these leave it open, the Hub is asked: whose token
is this, is this model gated, may this token read it. The text of an error is never searched.
"""

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmctl.errors import (
    GatedError,
    LlmctlError,
    NotFoundError,
    OfflineError,
    RateLimitedError,
    RemoteError,
    TokenError,
    UnreachableError,
    UserError,
)
from llmctl.hub import settings
from llmctl.hub.cache.paths import near_names
from llmctl.hub.environment import OTHER_CERTIFICATES, connection_faults, without_credentials
from llmctl.hub.http import NotJsonError, Patience, get_json, requested_pause, tls_error
from llmctl.hub.http_library import http_library
from llmctl.hub.login.tokens import VARIABLES, token_source

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

# OpenSSL's verify codes: the certificate is not valid yet, or has expired. A wrong clock causes both.
_CLOCK_CODES = (9, 10)
_ONCE = Patience(attempts=1)


def translate(
    error: Exception,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> LlmctlError:
    """Return the error of llmctl for `error`. Raise `error` again if it does not come from the Hub or the network.

    Args:
        error: The exception that the call raised.
        repo_id: Requested model; None for calls about the account.
        revision: Requested revision.
        token: Token that was sent, if it is not the one in use.
    """
    httpx = http_library()
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if isinstance(error, LlmctlError):
        return error
    if isinstance(error, NotJsonError):
        return _captive_portal(error)
    if isinstance(error, HFValidationError):
        return bad_id(repo_id or "")
    if isinstance(error, OfflineModeIsEnabled):
        return OfflineError("HF_HUB_OFFLINE is set", hint="run it again without HF_HUB_OFFLINE")
    if isinstance(error, HfHubHTTPError):
        return _Refusal(error, repo_id, revision, token).explain()
    if isinstance(error, httpx.HTTPError):
        return unreachable(error)
    if type(error).__module__.startswith("socksio."):  # httpx does not translate it
        return UnreachableError(
            f"the proxy {_proxy()} does not answer as a SOCKS proxy does",
            hint="check ALL_PROXY, HTTPS_PROXY and HTTP_PROXY: http://HOST:PORT is for other proxies",
        )
    raise error


def bad_id(repo_id: str) -> UserError:
    """Return the error for an invalid model id."""
    return UserError(
        f"{repo_id!r} is not a model id of the Hub",
        hint="give it as the Hub shows it: org/name, as in Qwen/Qwen3-4B",
    )


def not_the_hub(what: str) -> UnreachableError:
    """Return the error for a well-formed response that cannot come from the Hub."""
    host = urlsplit(settings.endpoint()).hostname
    return UnreachableError(f"{host} sent an answer that is not the Hub's: {what}", hint=_endpoint_hint())


def unreachable(error: Exception) -> LlmctlError:
    """Return the error for a call that got no response."""
    httpx = http_library()

    if fault := next(connection_faults(scheme=urlsplit(settings.endpoint()).scheme), None):
        return fault.error()
    try:
        host = error.request.url.host  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        host = urlsplit(settings.endpoint()).hostname or settings.endpoint()
    tls = tls_error(error)
    if tls is not None:
        return _tls(host, tls)
    proxy = _proxy()
    through = f" through the proxy {proxy}" if proxy else ""
    if isinstance(error, httpx.ProxyError):
        return UnreachableError(
            f"the proxy {proxy or 'of the environment'} does not let llmctl reach {host}",
            hint="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY",
        )
    if isinstance(error, httpx.TimeoutException):
        return UnreachableError(
            f"{host} did not answer within {settings.timeout_seconds():g} s{through}",
            hint="try again; HF_HUB_DOWNLOAD_TIMEOUT sets the number of seconds",
        )
    return UnreachableError(
        f"cannot reach {host}{through}: {type(error).__name__}",
        hint=_endpoint_hint() if not proxy else "check the proxy, and HF_ENDPOINT if it is set",
    )


class _Refusal:
    """An error response of the Hub, and the requests that determine its cause."""

    def __init__(
        self,
        error: "HfHubHTTPError",
        repo_id: str | None,
        revision: str | None,
        token: str | None,
    ) -> None:
        self.error, self.response = error, error.response
        self.repo_id, self.revision, self.token = repo_id, revision, token
        self.code = error.response.headers.get("X-Error-Code")

    def explain(self) -> RemoteError:
        from huggingface_hub.errors import (
            DisabledRepoError,
            EntryNotFoundError,
            GatedRepoError,
            RevisionNotFoundError,
        )

        status = self.response.status_code
        if status != 429 and status < 500 and not settings.is_hub(str(self.response.url)):
            return UnreachableError(
                f"{self.response.url.host}, where the Hub keeps large files, answered {status} each time",
                hint="check for a firewall or a proxy, or run the same command again; received data is kept",
            )
        if isinstance(self.error, GatedRepoError):
            return self._gated()
        if isinstance(self.error, RevisionNotFoundError):
            return self._revision()
        if isinstance(self.error, EntryNotFoundError):
            return NotFoundError(f"{self.repo_id} lacks a file that it lists: {self.response.url.path}")
        if isinstance(self.error, DisabledRepoError):
            return RemoteError(f"{self.repo_id} has been disabled", hint=f"its page: {self._page()}")
        if status == 429:
            return self._rate_limited()
        if status >= 500 or status == 408:
            return UnreachableError(
                f"{self.response.url.host} is in trouble: it answered {status}",
                hint="wait a little and run the same command again; received data is kept",
            )
        if status in (401, 403, 404):
            return self._refused(status)
        return RemoteError(f"{self.response.url.host} answered {status} to {self.response.url.path}")

    def _refused(self, status: int) -> RemoteError:
        """Return the error for a 401, 403 or 404 without an error code."""
        account = self._account()
        if account is None and self._has_token():
            return self._wrong_token()
        if self.repo_id is None:
            return self._wrong_token() if status == 401 else self._scope(account or {})
        if status == 403:
            return self._scope(account or {})
        return self._missing(account)

    # -- requests

    def _has_token(self) -> bool:
        return self.token is not None or token_source() is not None

    def _account(self) -> dict[str, Any] | None:
        """Return the account of the token that was sent; None if the Hub knows none."""
        from huggingface_hub.errors import HfHubHTTPError

        if not self._has_token() or (self.repo_id is None and self.response.status_code == 401):
            return None
        try:
            answer = get_json("/api/whoami-v2", token=self.token, patience=_ONCE)
        except HfHubHTTPError as error:
            if error.response.status_code == 401:
                return None
            raise translate(error) from error
        return answer if isinstance(answer, dict) else {}

    def _gating(self) -> Any:
        """Return how access to the model is granted, from its public description."""
        with suppress(Exception):
            return get_json(f"/api/models/{self.repo_id}?expand=gated", token=self.token, patience=_ONCE).get("gated")
        return None

    # -- errors

    def _page(self) -> str:
        return settings.model_page(self.repo_id or "")

    def _wrong_token(self) -> TokenError:
        given = "the token that was given"
        source = given if self.token is not None else token_source() or given
        named = source if source == given else f"the token from {source}"
        return TokenError(
            f"the Hub does not know {named}: it is mistyped or has been deleted",
            hint=f"make one at {settings.tokens_page()}, then run: llmctl login"
            + (f" (and unset {source}: it takes precedence over the stored one)" if source in VARIABLES else ""),
            details={"token_source": source},
        )

    def _gated(self) -> GatedError:
        account = self._account() if self._has_token() else None
        if self._has_token() and account is None:
            return GatedError(self._wrong_token().message, hint=self._wrong_token().hint)
        if account is None:
            return GatedError(
                f"{self.repo_id} is gated, and no token was sent",
                hint=f"accept its conditions at {self._page()}, then run: llmctl login",
            )
        scope = _missing_scope(account, gated=True)
        if scope:
            return GatedError(**self._scope_error(account, scope))
        name = account.get("name")
        if self._gating() == "manual":
            words = f"its authors have not given access to {name}: not asked, still pending, or refused"
            hint = f"ask, or see how the request stands, at {self._page()}; then run the same command again"
        else:
            words = f"{name} has not accepted its conditions"
            hint = f"accept them at {self._page()}, then run the same command again"
        return GatedError(f"{self.repo_id} is gated, and {words}", hint=hint + " (another account: llmctl login)")

    def _scope_error(self, account: dict[str, Any], scope: str) -> dict[str, Any]:
        token = ((account.get("auth") or {}).get("accessToken") or {}).get("displayName") or "the token"
        return {
            "message": f"the token {token} of {account.get('name', 'this account')} may not read {self.repo_id}: "
            f"it lacks the permission '{scope}'",
            "hint": f"tick it at {settings.tokens_page()}, or run llmctl login with a token of type Read",
            "details": {"missing_permission": scope},
        }

    def _scope(self, account: dict[str, Any]) -> RemoteError:
        gated = bool(self._gating()) if self.repo_id else False
        scope = _missing_scope(account, gated=gated)
        if scope:
            return TokenError(**self._scope_error(account, scope))
        who = account.get("name")
        if self.repo_id is None or who is None:
            return TokenError(
                "the Hub forbids this without a token" if who is None else f"the Hub forbids this to {who}",
                hint=f"tokens: {settings.tokens_page()}; then run: llmctl login",
            )
        return TokenError(
            f"the Hub forbids {who} to read {self.repo_id}, although the token's type would allow it",
            hint=f"open {self._page()} with that account; its organisation may have to approve the token",
        )

    def _missing(self, account: dict[str, Any] | None) -> NotFoundError:
        near = near_names(self.repo_id or "")
        guess = f"; in the cache there is {', '.join(near)}" if near else ""
        if account is None:
            words = "there is no public model of that name: it does not exist, or is private and no token was sent"
            hint = f"check {self._page()}{guess}; for a private model run: llmctl login"
        else:
            words = f"it does not exist, or is private and {account.get('name')} may not see it"
            hint = f"check {self._page()}{guess}; for another account run: llmctl login"
        return NotFoundError(f"{self.repo_id}: {words}", hint=hint, details={"near": near})

    def _revision(self) -> NotFoundError:
        return NotFoundError(
            f"{self.repo_id} has no branch, tag or commit {self.revision or 'main'}",
            hint=f"its branches and tags: {self._page()}/tree/main",
        )

    def _rate_limited(self) -> RateLimitedError:
        wait = requested_pause(self.response)
        when = f", and asks to wait {wait:.0f} s" if wait else ""
        token_hint = "" if self._has_token() else "; with a token the limit is higher: llmctl login"
        return RateLimitedError(
            f"{self.response.url.host} limits the rate of requests{when}",
            hint=f"wait, then run the same command again; received data is kept{token_hint}",
            details={"retry_after_seconds": wait},
        )


def _missing_scope(account: dict[str, Any], *, gated: bool) -> str | None:
    """Return the permission that a fine-grained token lacks, as named on the tokens page; None for other tokens."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") != "fineGrained":
        return None
    grants = token.get("fineGrained") or {}
    if gated and not grants.get("canReadGatedRepos"):
        return "Read access to contents of all public gated repos you can access"
    return None if gated else "Read access to contents of all repos under your personal namespace"


def _captive_portal(error: NotJsonError) -> UnreachableError:
    kind = "a web page" if error.content_type in ("text/html", "application/xhtml+xml") else "something other than JSON"
    return UnreachableError(
        f"{error.host} answered with {kind}: this is not the Hub, but perhaps the login page of this network",
        hint="open any page in a browser to log in to the network, or check HF_ENDPOINT and the proxy",
    )


def _tls(host: str, error: Any) -> UnreachableError:
    code = getattr(error, "verify_code", None)
    if code in _CLOCK_CODES:
        return UnreachableError(
            f"the certificate of {host} is not valid at this computer's date",
            hint="check the clock with: date",
        )
    if code is not None:
        other = next((name for name in OTHER_CERTIFICATES if os.environ.get(name)), None)
        return UnreachableError(
            f"the certificate of {host} is not signed by an authority that this computer trusts",
            hint=f"SSL_CERT_FILE is what counts here: export SSL_CERT_FILE=${other}"
            if other
            else "where a proxy inspects the traffic, point SSL_CERT_FILE to its certificate",
        )
    return UnreachableError(f"cannot make a secure connection to {host}", hint=_endpoint_hint())


def _proxy() -> str | None:
    """Return the proxy for calls to the Hub, without a password."""
    from urllib.request import getproxies, proxy_bypass

    address = urlsplit(settings.endpoint())
    if address.hostname and proxy_bypass(address.hostname):
        return None
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy:
        return None
    return without_credentials(proxy if "://" in proxy else f"http://{proxy}")


def _endpoint_hint() -> str:
    from huggingface_hub import constants

    if settings.endpoint() != constants._HF_DEFAULT_ENDPOINT:
        return f"HF_ENDPOINT is {settings.shown_endpoint()}: is that right, and is the network up?"
    return "is the network up? cached models still work: llmctl models list"
