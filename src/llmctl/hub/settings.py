"""Where the Hub is and where its cache lies, as huggingface_hub was told by the environment.

Everything is read when it is asked for, so a program that changes `huggingface_hub.constants` is obeyed.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_TIMEOUT_SECONDS = 15.0


def endpoint() -> str:
    """The address of the Hub, without a slash at the end (HF_ENDPOINT)."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def cache_dir() -> Path:
    """The folder of the standard cache (HF_HUB_CACHE, or HF_HOME/hub)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_dir(repo_id: str) -> Path:
    """The folder of one model inside the cache."""
    return cache_dir() / ("models--" + repo_id.replace("/", "--"))


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def timeout_seconds() -> float:
    """How long one connect or one read may take (HF_HUB_DOWNLOAD_TIMEOUT).

    huggingface_hub's own default is 10 s for bodies and none at all for metadata; llmctl uses one bound for both.
    """
    text = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
    return float(text) if text.isdigit() and int(text) > 0 else DEFAULT_TIMEOUT_SECONDS


def is_hub(url: str) -> bool:
    """Whether `url` is on the Hub's own origin (scheme, host and port): the only place that the token may go to."""
    return _origin(url) == _origin(endpoint())


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def model_page(repo_id: str) -> str:
    """The page of a model, for people."""
    return f"{endpoint()}/{repo_id}"


def tokens_page() -> str:
    """The page where access tokens are made and changed."""
    return f"{endpoint()}/settings/tokens"
