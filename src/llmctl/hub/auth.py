"""Whose token is in use, where it comes from, and how one is stored, switched and forgotten.

Tokens lie where huggingface_hub keeps them (`HF_TOKEN_PATH` and `stored_tokens` beside it), in its format, readable
by their owner only, so `hf`, transformers and llmctl share one login.
"""

import configparser
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.errors import MachineError, TokenError, UserError
from llmctl.hub import access, settings
from llmctl.hub.http import get_json, refuse_if_offline, token_unreadable
from llmctl.paths import write_atomically

ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Account:
    """Who a token belongs to. Never the token itself.

    Attributes:
        name: The account's name on the Hub.
        token_name: The name of the token, as the Hub or `login --name` calls it.
        role: `read`, `write` or `fineGrained`; empty for a browser login.
        source: Where the token came from: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, or the path of the token file.
        organizations: The organisations that the account belongs to.
    """

    name: str
    token_name: str
    role: str
    source: str
    organizations: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredToken:
    """One token of the store: its name, and whether it is the one in the token file."""

    name: str
    active: bool


@dataclass(frozen=True)
class Logout:
    """What a logout did.

    Attributes:
        forgotten: The names of the stored tokens that were deleted.
        still_ruled_by: The environment variable whose token stays in use, or None.
    """

    forgotten: tuple[str, ...]
    still_ruled_by: str | None


def token_source() -> str | None:
    """Where the token in use comes from (a variable's name or a file's path), or None where there is none."""
    if os.environ.get("HF_OIDC_RESOURCE"):
        return "HF_OIDC_RESOURCE"
    ruling = ruling_variable()
    if ruling is not None:
        return ruling
    file = _token_file()
    return str(file) if _read(file) else None


def ruling_variable() -> str | None:
    """The environment variable that holds a token, which goes before the token file; or None."""
    return next((name for name in ENVIRONMENT if _clean(os.environ.get(name, ""))), None)


def environment_token() -> str | None:
    """The token of the environment, or None."""
    name = ruling_variable()
    return _clean(os.environ[name]) if name else None


def whoami() -> Account:
    """The account whose token is in use.

    Raises:
        TokenError: There is no token, or the Hub does not know it.
        UnreachableError, RateLimitedError, OfflineError: The Hub could not be asked.
    """
    refuse_if_offline("whoami")
    source = token_source()
    if source is None:
        raise TokenError(
            "no token is stored on this machine and HF_TOKEN is not set",
            hint=f"make one at {settings.tokens_page()}, then run: llmctl login",
        )
    return _account(_ask_whoami(None, source), source)


def login(token: str, *, name: str | None = None, add_to_git_credential: bool = False) -> Account:
    """Check `token` with the Hub and store it. A token that is not accepted changes nothing on the disk.

    Args:
        token: The token. White space around it is dropped.
        name: What to call it in the store; by default the name it has on the Hub.
        add_to_git_credential: Whether to hand it to git's credential helpers as well.

    Raises:
        UserError: The token is empty or cannot be one.
        TokenError: The Hub does not know it.
    """
    token = _clean(token)
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError("that is not a token", hint=f"copy one from {settings.tokens_page()}; it begins with hf_")
    refuse_if_offline("login")
    return store(token, account_of(token), name=name, add_to_git_credential=add_to_git_credential)


def account_of(token: str) -> Account:
    """The account that a token belongs to, asked of the Hub.

    Raises:
        TokenError: The Hub does not know it.
    """
    return _account(_ask_whoami(token, "the token that was given"), str(_token_file()))


def store(
    token: str,
    account: Account,
    *,
    name: str | None = None,
    add_to_git_credential: bool = False,
    extra: dict[str, str] | None = None,
) -> Account:
    """Put a checked token into the store and make it the one in use. `extra` holds a browser login's refresh data."""
    account = replace(account, token_name=name or account.token_name)
    stored = _read_store()
    stored[account.token_name] = {"hf_token": token, **(extra or {})}
    _write_store(stored)
    _write_secret(_token_file(), token)
    if add_to_git_credential:
        _tell_git(token)
    return account


def stored_tokens() -> tuple[StoredToken, ...]:
    """The tokens of the store, by name."""
    active = _read(_token_file())
    return tuple(
        StoredToken(name, bool(active) and fields.get("hf_token") == active) for name, fields in _read_store().items()
    )


def use_token(name: str) -> None:
    """Make a stored token the one in use.

    Raises:
        UserError: No token of that name is stored.
    """
    stored = _read_store()
    if name not in stored or not stored[name].get("hf_token"):
        known = ", ".join(stored) or "none"
        raise UserError(f"no token is stored under the name {name} (stored: {known})", hint="llmctl login --name NAME")
    _write_secret(_token_file(), stored[name]["hf_token"])


def logout(*, name: str | None = None) -> Logout:
    """Forget one stored token, or all of them.

    Raises:
        UserError: No token of that name is stored.
    """
    stored = _read_store()
    if name is not None and name not in stored:
        raise UserError(f"no token is stored under the name {name} (stored: {', '.join(stored) or 'none'})")
    active = _read(_token_file())
    forgotten = (name,) if name is not None else tuple(stored)
    if name is None:
        if active and not stored:
            forgotten = ("token",)
        _store_file().unlink(missing_ok=True)
        _token_file().unlink(missing_ok=True)
    else:
        fields = stored.pop(name)
        _write_store(stored)
        if fields.get("hf_token") == active:
            _token_file().unlink(missing_ok=True)
    return Logout(forgotten=forgotten, still_ruled_by=ruling_variable())


def _ask_whoami(token: str | None, source: str) -> dict[str, Any]:
    try:
        answer = get_json("/api/whoami-v2", token=token)
    except Exception as error:
        raise access.explain(error, token=token, token_source=source) from error
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise access.not_the_hub("whoami has no name in it")
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


def _tell_git(token: str) -> None:
    from huggingface_hub.utils import list_credential_helpers, set_git_credential

    if not list_credential_helpers():
        raise UserError(
            "the token is stored, but git has no credential helper to hand it to",
            hint="git config --global credential.helper store, then run: llmctl login --git-credential",
        )
    set_git_credential(token)


def _token_file() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def _store_file() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_STORED_TOKENS_PATH)


def _clean(token: str) -> str:
    return token.replace("\r", "").replace("\n", "").strip()


def _read(file: Path) -> str:
    try:
        return _clean(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise token_unreadable(error) from error


def _read_store() -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(_store_file(), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}  # as huggingface_hub has it: the next login writes it anew
    return {name: dict(parser.items(name)) for name in parser.sections()}


def _write_store(stored: dict[str, dict[str, str]]) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    for name in sorted(stored):
        parser.add_section(name)
        for key, value in stored[name].items():
            parser.set(name, key, value)
    text = io.StringIO()
    parser.write(text)
    _write_secret(_store_file(), text.getvalue())


def _write_secret(file: Path, text: str) -> None:
    """Write for the owner only. The temporary file that `write_atomically` renames is made with mode 0600."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, text)
        file.chmod(0o600)
    except OSError as error:
        raise MachineError(
            f"cannot write {file}: {error.strerror}",
            hint="HF_HOME (or HF_TOKEN_PATH) sets where tokens are kept; HF_TOKEN needs no file",
        ) from error
