"""Folders of llmctl's own files. Models stay in the standard cache of huggingface_hub.

`LLMCTL_HOME` puts everything under one folder; by default each kind of file has the platform's folder (platformdirs).
"""

import os
import tempfile
from pathlib import Path

from platformdirs import PlatformDirs

_DIRS = PlatformDirs("llmctl", appauthor=False)


def _folder(kind: str, default: str) -> Path:
    home = os.environ.get("LLMCTL_HOME")
    return Path(home).expanduser() / kind if home else Path(default)


def config_file() -> Path:
    """Return the user's configuration file, which may not exist."""
    return _folder("config", _DIRS.user_config_dir) / "config.yaml"


def data_dir() -> Path:
    """Return the folder of files that are costly to make again: the converted demo model."""
    return _folder("data", _DIRS.user_data_dir)


def cache_dir() -> Path:
    """Return the folder of files that only save time: the quantised cache."""
    return _folder("cache", _DIRS.user_cache_dir)


def state_dir() -> Path:
    """Return the folder of state that is kept between commands."""
    return _folder("state", _DIRS.user_state_dir)


def log_dir() -> Path:
    """Return the folder of bug reports."""
    return _folder("log", _DIRS.user_log_dir)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
