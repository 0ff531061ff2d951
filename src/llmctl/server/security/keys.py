"""API keys: who may use the server. Only their hashes are kept, so that no log, repr or error can show one."""

import hashlib
import hmac
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from llmctl.errors import UserError

VARIABLE = "LLMCTL_API_KEY"
SHORTEST = 16
_LARGEST_FILE_BYTES = 64 * 1024
_MAKE_ONE = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Keys:
    """The keys that open the server.

    Attributes:
        digests: SHA-256 of each key. Enough for random keys, which cannot be guessed; these are no passwords.
        source: Where they came from: a file, or the environment.
    """

    digests: tuple[bytes, ...] = field(repr=False)
    source: str

    @classmethod
    def of(cls, keys: Sequence[str], *, source: str) -> "Keys":
        """From the keys themselves.

        Raises:
            UserError: there is none, or one is too short or has characters that a header cannot carry. The message
                says which one by its number, never what it is.
        """
        if not keys:
            raise UserError(f"there is no API key in {source}", hint=f"write one a line; to make one: {_MAKE_ONE}")
        for number, key in enumerate(keys, start=1):
            if _KEY.fullmatch(key) is None:
                raise UserError(f"API key {number} in {source} has spaces or characters that are not ASCII")
            if len(key) < SHORTEST:
                raise UserError(
                    f"API key {number} in {source} has fewer than {SHORTEST} characters: it could be guessed",
                    hint=f"to make one: {_MAKE_ONE}",
                )
        return cls(tuple(_digest(key.encode()) for key in keys), source)

    def open_to(self, key: bytes) -> bool:
        """Whether `key` is one of them. It takes equally long whichever it is, and if it is none."""
        digest = _digest(key)
        found = False
        for one in self.digests:
            found |= hmac.compare_digest(one, digest)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(file: Path | None, *, environ: Mapping[str, str] | None = None) -> Keys | None:
    """The keys of a file (one a line; empty lines and those that begin with # are skipped), or else those in
    LLMCTL_API_KEY (with commas between them); None where neither is there.

    Raises:
        UserError: the file cannot be read, or a key is no good.
    """
    if file is not None:
        lines = [line.strip() for line in _text_of(file).splitlines()]
        return Keys.of([line for line in lines if line and not line.startswith("#")], source=str(file))
    text = (os.environ if environ is None else environ).get(VARIABLE)
    if text is None:
        return None
    return Keys.of([part.strip() for part in text.split(",") if part.strip()], source=VARIABLE)


def _text_of(file: Path) -> str:
    try:
        with file.expanduser().open("rb") as opened:
            data = opened.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the file of API keys {file}: {error.strerror}") from error
    if len(data) > _LARGEST_FILE_BYTES:
        raise UserError(f"the file of API keys {file} has more than {_LARGEST_FILE_BYTES} bytes: is it the right one?")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"the file of API keys {file} is not text") from None


def refuse_open_door(host: str, keys: Keys | None, *, without_key: bool) -> None:
    """An address that others can reach needs a key, or the word of whoever starts the server.

    Raises:
        UserError: `host` is not this machine's loopback, there are no keys, and `without_key` is not said.
    """
    if keys is None and not without_key and not is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines, and no API key is set",
            hint=f"set {VARIABLE} or --api-key-file FILE; or --no-api-key, if everybody there may use this machine",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address: `localhost`, 127.0.0.0/8, ::1. A name that is not `localhost`
    may be anything."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
