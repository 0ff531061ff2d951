"""The account that a token belongs to, and login with a token."""

from dataclasses import dataclass, replace
from typing import Any

from llmctl.errors import TokenError, UserError
from llmctl.hub import error_translation, settings
from llmctl.hub.http import get_json, refuse_if_offline
from llmctl.hub.login.tokens import clean, store_token, token_file, token_source


@dataclass(frozen=True)
class Account:
    """The account of a token, without the token itself.

    Attributes:
        name: Name of the account on the Hub.
        token_name: Name of the token on the Hub or from `login --name`.
        role: `read`, `write` or `fineGrained`; empty for a browser login.
        source: Origin of the token: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, or the path of the token file.
        organizations: Organisations that the account belongs to.
    """

    name: str
    token_name: str
    role: str
    source: str
    organizations: tuple[str, ...] = ()


def whoami() -> Account:
    """Return the account whose token is in use.

    Raises:
        TokenError: there is no token, or the Hub does not know it.
        UnreachableError, RateLimitedError, OfflineError: the Hub could not be asked.
    """
    refuse_if_offline("whoami")
    source = token_source()
    if source is None:
        raise TokenError(
            "no token is stored on this machine and HF_TOKEN is not set",
            hint=f"make one at {settings.tokens_page()}, then run: llmctl login",
        )
    return _account(_ask_whoami(None), source)


def login(token: str, *, name: str | None = None, add_to_git_credential: bool = False) -> Account:
    """Check a token with the Hub and store it. A rejected token changes nothing on the disk.

    Args:
        token: The token. Surrounding white space is removed.
        name: Name in the store; by default, the name on the Hub.
        add_to_git_credential: Also store it with git's credential helpers.

    Raises:
        UserError: the token is empty or malformed.
        TokenError: the Hub does not know it.
    """
    token = clean(token)
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError("that is not a token", hint=f"copy one from {settings.tokens_page()}; it begins with hf_")
    refuse_if_offline("login")
    return store(token, account_of(token), name=name, add_to_git_credential=add_to_git_credential)


def account_of(token: str) -> Account:
    """Return the account that a token belongs to, according to the Hub.

    Raises:
        TokenError: the Hub does not know it.
    """
    return _account(_ask_whoami(token), str(token_file()))


def store(
    token: str,
    account: Account,
    *,
    name: str | None = None,
    add_to_git_credential: bool = False,
    extra: dict[str, str] | None = None,
) -> Account:
    """Store a checked token and use it. `extra` has the refresh data of a browser login."""
    account = replace(account, token_name=name or account.token_name)
    store_token(token, account.token_name, extra=extra)
    if add_to_git_credential:
        _add_to_git(token)
    return account


def _ask_whoami(token: str | None) -> dict[str, Any]:
    try:
        answer = get_json("/api/whoami-v2", token=token)
    except Exception as error:
        raise error_translation.translate(error, token=token) from error
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise error_translation.not_the_hub("whoami has no name in it")
    return answer


def _account(answer: dict[str, Any], source: str) -> Account:
    details = (answer.get("auth") or {}).get("accessToken") or {}
    return Account(
        name=answer["name"],
        token_name=str(details.get("displayName") or f"oauth-{answer['name']}"),
        role=str(details.get("role") or ""),
        source=source,
        organizations=tuple(o["name"] for o in answer.get("orgs") or () if isinstance(o, dict) and "name" in o),
    )


def _add_to_git(token: str) -> None:
    from huggingface_hub.utils import list_credential_helpers, set_git_credential

    if not list_credential_helpers():
        raise UserError(
            "the token is stored, but git has no credential helper to hand it to",
            hint="git config --global credential.helper store, then run: llmctl login --git-credential",
        )
    set_git_credential(token)
