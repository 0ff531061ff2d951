"""API keys. Only their hashes are kept, so that no log, repr or error can show a key."""

import hashlib
import hmac
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from llmctl.errors import UserError
from llmctl.paths import expand
from llmctl.text_files import NotTextError, decode

VARIABLE = "LLMCTL_API_KEY"
MIN_LENGTH = 16
_MAX_FILE_BYTES = 64 * 1024
_GENERATE = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Keys:
    """The accepted API keys.

    Attributes:
        digests: The SHA-256 of each key. A plain hash is enough, because keys are random, unlike passwords.
        source: The file or environment variable from which they were read.
    """

    digests: tuple[bytes, ...] = field(repr=False)
    source: str

    @classmethod
    def from_plain(cls, keys: Sequence[str], *, source: str) -> "Keys":
        """Hash the keys.

        Raises:
            UserError: there are no keys, or a key is too short or has characters that are invalid in a header. The
                message gives the number of the key and never shows the key itself.
        """
        if not keys:
            raise UserError(f"no API key in {source}", hint=f"write one key per line; generate one with: {_GENERATE}")
        for number, key in enumerate(keys, start=1):
            if _KEY.fullmatch(key) is None:
                raise UserError(f"API key {number} in {source} has spaces or non-ASCII characters")
            if len(key) < MIN_LENGTH:
                raise UserError(
                    f"API key {number} in {source} has fewer than {MIN_LENGTH} characters and could be guessed",
                    hint=f"generate one with: {_GENERATE}",
                )
        return cls(tuple(_digest(key.encode()) for key in keys), source)

    def accepts(self, key: bytes) -> bool:
        """Return True if a key is accepted. The comparison takes constant time."""
        digest = _digest(key)
        accepted = False
        for stored in self.digests:
            accepted |= hmac.compare_digest(stored, digest)
        return accepted


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(file: Path | None, *, environ: Mapping[str, str] | None = None) -> Keys | None:
    """Return the keys in a file, or without a file those in LLMCTL_API_KEY, or None if neither is set.

    A file has one key per line; empty lines and lines that start with # are skipped. Keys in the variable are separated
    by commas.

    Raises:
        UserError: the file cannot be read, or a key is invalid.
    """
    if file is not None:
        lines = [line.strip() for line in _read_text(file).splitlines()]
        return Keys.from_plain([line for line in lines if line and not line.startswith("#")], source=str(file))
    text = (os.environ if environ is None else environ).get(VARIABLE)
    if text is None:
        return None
    return Keys.from_plain([part.strip() for part in text.split(",") if part.strip()], source=VARIABLE)


def _read_text(file: Path) -> str:
    try:
        with expand(file).open("rb") as opened:
            data = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the API key file {file}: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise UserError(f"the API key file {file} has more than {_MAX_FILE_BYTES} bytes; is it the right file?")
    try:
        return decode(data)
    except NotTextError as error:
        raise UserError(f"the API key file {file}: {error}") from None


def check_bind_address(host: str, keys: Keys | None, *, without_key: bool) -> None:
    """Require an API key, or explicit consent, for an address that other machines can reach.

    Raises:
        UserError: `host` is not on the loopback, there are no keys, and `without_key` is false.
    """
    if keys is None and not without_key and not is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines, and no API key is set",
            hint=f"set {VARIABLE} or --api-key-file FILE; or use --no-api-key to let everybody on that network in",
        )


def is_loopback(host: str) -> bool:
    """Return True for `localhost`, 127.0.0.0/8 and ::1. Other names may resolve to any address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
