"""The token in use, and the store of tokens: how they are read, written, switched and removed.

Tokens lie where huggingface_hub keeps them (`HF_TOKEN_PATH` and `stored_tokens` beside it), in its format, readable
by their owner only, so `hf`, transformers and llmctl share one login.
"""

import configparser
import io
import os
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import MachineError, UserError
from llmctl.hub.environment import token_fault
from llmctl.paths import write_atomically
from llmctl.text_files import NotTextError, decode, encoding_of

ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
VARIABLES = ("HF_OIDC_RESOURCE", *ENVIRONMENT)  # the first makes huggingface_hub request a token
_STORE_AGAIN = "store the token again: llmctl login"


@dataclass(frozen=True)
class StoredToken:
    """A token of the store: its name, and True if it is also in the token file."""

    name: str
    active: bool


@dataclass(frozen=True)
class Logout:
    """The result of a logout.

    Attributes:
        forgotten: Names of the stored tokens that were deleted.
        overriding_variable: Environment variable whose token is still in use, or None.
    """

    forgotten: tuple[str, ...]
    overriding_variable: str | None


def token_source() -> str | None:
    """Return the variable or the file that has the token in use; None without a token.

    Raises:
        UserError: the file cannot be read as a token.
    """
    if os.environ.get("HF_OIDC_RESOURCE"):
        return "HF_OIDC_RESOURCE"
    variable = overriding_variable()
    if variable is not None:
        return variable
    file = token_file()
    return str(file) if _read(file) else None


def overriding_variable() -> str | None:
    """Return the environment variable with a token, which takes precedence over the token file, or None."""
    return next((name for name in ENVIRONMENT if clean(os.environ.get(name, ""))), None)


def environment_token() -> str | None:
    """Return the token of the environment, or None."""
    name = overriding_variable()
    return clean(os.environ[name]) if name else None


def stored_tokens() -> tuple[StoredToken, ...]:
    """Return the tokens of the store, by name."""
    active = _readable(token_file())
    return tuple(
        StoredToken(name, bool(active) and fields.get("hf_token") == active) for name, fields in _read_store().items()
    )


def store_token(token: str, name: str, *, extra: dict[str, str] | None = None) -> None:
    """Store a token and use it. `extra` has the refresh data of a browser login."""
    stored = _read_store()
    stored[name] = {"hf_token": token, **(extra or {})}
    _write_store(stored)
    _write_secret(token_file(), token)


def use_token(name: str) -> None:
    """Use a stored token.

    Raises:
        UserError: no token of that name is stored.
    """
    stored = _read_store()
    if name not in stored or not stored[name].get("hf_token"):
        known = ", ".join(stored) or "none"
        raise UserError(f"no token is stored under the name {name} (stored: {known})", hint="llmctl login --name NAME")
    _write_secret(token_file(), stored[name]["hf_token"])


def logout(*, name: str | None = None) -> Logout:
    """Delete one stored token, or all of them.

    Raises:
        UserError: no token of that name is stored.
    """
    stored = _read_store()
    if name is not None and name not in stored:
        raise UserError(f"no token is stored under the name {name} (stored: {', '.join(stored) or 'none'})")
    active = _readable(token_file())
    forgotten = (name,) if name is not None else tuple(stored)
    if name is None:
        if not stored and token_file().is_file():
            forgotten = ("token",)
        _remove(_store_file())
        _remove(token_file())
    else:
        fields = stored.pop(name)
        _write_store(stored)
        if fields.get("hf_token") == active:
            _remove(token_file())
    return Logout(forgotten=forgotten, overriding_variable=overriding_variable())


def token_file() -> Path:
    """Return the path of the file with the token in use."""
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def clean(token: str) -> str:
    """Return a token without surrounding white space from copying."""
    return token.replace("\r", "").replace("\n", "").strip()


def _store_file() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_STORED_TOKENS_PATH)


def _read(file: Path) -> str:
    """Return the token in a file, or an empty string. Raise UserError if huggingface_hub would not read it."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise unreadable(error) from error
    try:
        token = clean(decode(data))
    except NotTextError as error:
        raise UserError(f"the token file {file}: {error}", hint=_STORE_AGAIN) from error
    if encoding_of(data) != "utf-8":
        mark = encoding_of(data).removesuffix("-sig").upper()
        raise UserError(f"the token file {file} begins with the byte order mark of {mark}", hint=_STORE_AGAIN)
    if fault := token_fault(token, f"the token file {file}"):
        raise fault.error()
    return token


def _readable(file: Path) -> str:
    """Return the token in a file; an empty string also if it cannot be used, to replace or delete it."""
    try:
        return _read(file)
    except UserError:
        return ""


def check_token(token: str) -> None:
    """Check a token that is about to be sent.

    Raises:
        UserError: it has characters that no token has. The message names its origin, and no part of it.
    """
    variable = next((name for name in ENVIRONMENT if clean(os.environ.get(name, "")) == token), None)
    if fault := token_fault(token, variable or "the token"):
        raise fault.error()


def unreadable(error: OSError) -> MachineError:
    """Return the error for a token file that cannot be read, such as one that root made."""
    return MachineError(
        f"cannot read the token file {error.filename}: {error.strerror}",
        hint="correct its owner (chown), or set HF_TOKEN or HF_TOKEN_PATH",
    )


def _read_store() -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(_store_file(), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}  # like huggingface_hub: the next login writes a new store
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


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot remove {file}: {error.strerror}", hint="log out as the user that owns it"
        ) from error


def _write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner can read. The temporary file that `write_atomically` renames has mode 0600."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, text)
        file.chmod(0o600)
    except OSError as error:
        raise MachineError(
            f"cannot write {file}: {error.strerror}",
            hint="HF_HOME (or HF_TOKEN_PATH) sets where tokens are kept; HF_TOKEN needs no file",
        ) from error
