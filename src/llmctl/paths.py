"""Where llmctl keeps its own files. Models stay in the standard cache of huggingface_hub.

`LLMCTL_HOME` puts everything under one folder; without it each kind goes where the platform wants it (platformdirs).
"""

import os
import tempfile
from pathlib import Path

from platformdirs import PlatformDirs

_DIRS = PlatformDirs("llmctl", appauthor=False)


def _own(kind: str, default: str) -> Path:
    home = os.environ.get("LLMCTL_HOME")
    return Path(home).expanduser() / kind if home else Path(default)


def config_file() -> Path:
    """The user's configuration file (it may not exist)."""
    return _own("config", _DIRS.user_config_dir) / "config.yaml"


def data_dir() -> Path:
    """The folder for what can be made again but is costly to make: the converted demo model."""
    return _own("data", _DIRS.user_data_dir)


def cache_dir() -> Path:
    """The folder for what can be made again, and is kept only to save time: quantised copies of weights."""
    return _own("cache", _DIRS.user_cache_dir)


def state_dir() -> Path:
    """The folder for what llmctl remembers between commands."""
    return _own("state", _DIRS.user_state_dir)


def log_dir() -> Path:
    """The folder for the reports of bugs."""
    return _own("log", _DIRS.user_log_dir)


def write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` so that a reader sees the old file or the new one, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
