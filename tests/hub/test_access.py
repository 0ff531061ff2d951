"""The translation of the Hub client's exceptions into errors with a hint: by type, by status, by asking the Hub."""

import ssl
import sys
from types import ModuleType
from typing import Any

import pytest

from llmctl.errors import (
    GatedError,
    LlmctlError,
    NotFoundError,
    RateLimitedError,
    TokenError,
    UnreachableError,
    UserError,
)
from llmctl.hub import error_translation, settings
from llmctl.hub.http_library import http_library
from llmctl.hub.listing import fetch_listing
from support.hub_standin import HubStandin


@pytest.fixture(autouse=True)
def _this_hub(hub: HubStandin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-in the Hub of this process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(hub.root / "no-token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(hub.root / "no-tokens"))


@pytest.mark.parametrize(
    ("version", "name"), [("1.5.0", "httpx"), ("1.33.0", "httpx"), ("2.0.0.rc1", "httpx2"), ("2.4.0", "httpx2")]
)
def test_the_http_library_is_the_one_that_huggingface_hub_calls(
    monkeypatch: pytest.MonkeyPatch, version: str, name: str
) -> None:
    planted = ModuleType(name)
    monkeypatch.setattr("huggingface_hub.__version__", version)
    monkeypatch.setitem(sys.modules, name, planted)
    assert http_library() is planted


def test_the_http_library_has_the_errors_of_huggingface_hub() -> None:
    from huggingface_hub.errors import HfHubHTTPError

    assert issubclass(HfHubHTTPError, http_library().HTTPError)


def _tls(code: int | None) -> Exception:
    httpx = http_library()
    cause = ssl.SSLCertVerificationError("certificate verify failed")
    if code is None:
        plain = ssl.SSLError("wrong version number")
        error = httpx.ConnectError("refused", request=httpx.Request("GET", settings.endpoint()))
        error.__cause__ = plain
        return error
    cause.verify_code = code
    error = httpx.ConnectError("refused", request=httpx.Request("GET", settings.endpoint()))
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "not valid at this computer's date"),
        (10, "not valid at this computer's date"),
        (20, "authority"),
        (None, "secure"),
    ],
)
def test_a_tls_error_distinguishes_a_wrong_clock_from_an_unknown_signer(code: int | None, words: str) -> None:
    error = error_translation.translate(_tls(code))
    assert isinstance(error, UnreachableError)
    assert words in error.message
    assert error.hint


def test_a_proxy_that_refuses_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "")
    httpx = http_library()
    error = error_translation.translate(httpx.ProxyError("407", request=httpx.Request("GET", settings.endpoint())))
    assert "http://proxy.invalid:3128" in error.message
    assert "secret" not in error.message + str(error.hint)


def test_other_exceptions_are_raised_unchanged() -> None:
    with pytest.raises(ZeroDivisionError):
        error_translation.translate(ZeroDivisionError())


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "RepoNotFound", NotFoundError),
        (404, "RevisionNotFound", NotFoundError),
        (403, "GatedRepo", GatedError),
        (401, "GatedRepo", GatedError),
        (401, "RepoNotFound", NotFoundError),
        (403, None, TokenError),
    ],
)
def test_the_error_code_decides_whatever_the_message_says(
    hub: HubStandin, status: int, code: str | None, kind: type[LlmctlError]
) -> None:
    hub.fault("/revision/", status=status, code=code)
    with pytest.raises(kind) as caught:
        fetch_listing("acme/tiny")
    assert caught.value.hint
    assert caught.value.exit_code == 4


def test_a_rate_limit_without_a_token_suggests_one(hub: HubStandin) -> None:
    hub.fault("/revision/", status=429, headers={"RateLimit": '"api";r=0;t=900'}, times=-1)
    with pytest.raises(RateLimitedError, match="900 s") as caught:
        fetch_listing("acme/tiny")
    assert "llmctl login" in str(caught.value.hint)


@pytest.mark.parametrize(
    "answer",
    [
        {"sha": "main", "siblings": []},
        {"siblings": []},
        [],
        {"sha": "0" * 40, "siblings": [{"rfilename": "x", "size": 1, "blobId": "../../x"}]},
        {"sha": "0" * 40, "siblings": [{"rfilename": "x", "size": -1, "blobId": "0" * 40}]},
        {"sha": "0" * 40, "siblings": [{"rfilename": "x", "blobId": "0" * 40}]},
    ],
)
def test_an_invalid_listing_is_refused(answer: Any) -> None:
    from llmctl.hub import listing

    with pytest.raises(UnreachableError, match="not the Hub's"):
        listing._listing("acme/tiny", answer)


def test_a_folder_of_certificates_that_does_not_exist_is_named_instead_of_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", "/absent")
    error = error_translation.translate(_tls(20))
    assert isinstance(error, UserError)
    assert error.message.startswith("SSL_CERT_DIR names /absent")


def test_a_bundle_that_httpx_does_not_read_is_part_of_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/corp.pem")
    assert error_translation.translate(_tls(20)).hint == (
        "SSL_CERT_FILE is what counts here: export SSL_CERT_FILE=$REQUESTS_CA_BUNDLE"
    )


def test_an_answer_that_is_not_of_a_socks_proxy_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    class ProtocolError(Exception):
        """As socksio raises it, which need not be installed."""

    ProtocolError.__module__ = "socksio.exceptions"
    monkeypatch.setenv("HTTP_PROXY", "http://anna:secret@proxy:1")
    monkeypatch.setenv("NO_PROXY", "")
    error = error_translation.translate(ProtocolError("Malformed reply"))
    assert isinstance(error, UnreachableError)
    assert "http://proxy:1 does not answer" in error.message


def test_the_address_of_the_hub_is_shown_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://anna:secret@mirror/hub")
    assert settings.model_page("acme/x") == "https://mirror/hub/acme/x"
    assert settings.endpoint() == "https://anna:secret@mirror/hub"
