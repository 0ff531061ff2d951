"""The removal of secrets from texts: tokens, and the user and password inside an address."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_TOKEN = re.compile(r"\b(?:hf|api_org|hf_oauth)_[A-Za-z0-9_-]{4,}")
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST_TOKEN = 7


def scrubbed(text: str) -> str:
    """Remove credentials from the addresses in a text."""
    return _CREDENTIALS.sub("", text)


def without_secrets(text: str, *, secrets: Sequence[str] = (), home: Path | None = None) -> str:
    """Replace the home folder by `~`, and remove tokens and credentials from a text."""
    for secret in secrets:
        for form in {secret, quote(secret, safe="")} - {""}:
            text = text.replace(form, "(secret)")
    text = _TOKEN.sub("(token)", scrubbed(text))
    folder = str(home or Path.home())
    return text if folder in ("/", "") else re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)


def known_tokens() -> tuple[str, ...]:
    """Return the tokens of this machine, to remove them from a report. This works without huggingface_hub."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    texts = [os.environ.get(name, "") for name in _VARIABLES]
    for path in (file, file.with_name("stored_tokens")):
        try:
            texts += re.findall(
                r"^(?:hf_token\s*=\s*|refresh_token\s*=\s*)?(\S+)$", path.read_text(encoding="utf-8"), re.M
            )
        except (OSError, ValueError):
            continue
    return tuple({text.strip() for text in texts if len(text.strip()) >= _SHORTEST_TOKEN})
