"""The addresses of the Hub and of its cache, as huggingface_hub reads them from the environment.

They are read at each call, so changes of `huggingface_hub.constants` by a program take effect.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

from llmctl.hub.environment import without_credentials

DEFAULT_TIMEOUT_SECONDS = 15.0


def endpoint() -> str:
    """Return the address of the Hub, without a slash at the end (HF_ENDPOINT)."""
    from huggingface_hub import constants

    return constants.ENDPOINT or constants._HF_DEFAULT_ENDPOINT


def shown_endpoint() -> str:
    """Return the address of the Hub for messages: without a password."""
    return without_credentials(endpoint())


def cache_dir() -> Path:
    """Return the folder of the standard cache (HF_HUB_CACHE, or HF_HOME/hub)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_dir(repo_id: str) -> Path:
    """Return the folder of one model inside the cache."""
    return cache_dir() / ("models--" + repo_id.replace("/", "--"))


def repo_id_of(folder: Path) -> str:
    """Return the id of the model in a folder of the cache."""
    return folder.name.removeprefix("models--").replace("--", "/")


def is_offline() -> bool:
    """Return True if HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids network access."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def timeout_seconds() -> float:
    """Return the time limit for one connect or one read (HF_HUB_DOWNLOAD_TIMEOUT).

    huggingface_hub's own default is 10 s for bodies and none at all for metadata; llmctl uses one limit for both.
    """
    text = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "").strip()
    return float(text) if text.isdigit() and int(text) > 0 else DEFAULT_TIMEOUT_SECONDS


def is_hub(url: str) -> bool:
    """Return True if `url` has the Hub's origin (scheme, host, port), the only one that may get the token."""
    return _origin(url) == _origin(endpoint())


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def model_page(repo_id: str) -> str:
    """Return the address of a model's web page."""
    return f"{shown_endpoint()}/{repo_id}"


def tokens_page() -> str:
    """Return the address of the page where access tokens are made and changed."""
    return f"{shown_endpoint()}/settings/tokens"
