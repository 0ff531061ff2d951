"""Folders of llmctl's own files. Models stay in the standard cache of huggingface_hub.

`LLMCTL_HOME` puts everything under one folder; by default each kind of file has the platform's folder (platformdirs).
"""

import os
import sys
import tempfile
from pathlib import Path

from platformdirs import PlatformDirs

from llmctl.errors import MachineError, UserError

_DIRS = PlatformDirs("llmctl", appauthor=False)


def _folder(kind: str) -> Path:
    home = os.environ.get("LLMCTL_HOME")
    if home:
        return expand(home, name="LLMCTL_HOME") / kind
    try:
        return Path(getattr(_DIRS, f"user_{kind}_dir"))
    except RuntimeError:
        raise UserError(
            "HOME is not set, and this user has no home folder", hint="export HOME=FOLDER, or LLMCTL_HOME=FOLDER"
        ) from None


def expand(path: Path | str, *, name: str = "") -> Path:
    """Return a path with `~` and `~user` replaced.

    Args:
        name: The variable or key that the path comes from, for the message.

    Raises:
        UserError: it cannot be a path, or names the home of a user who has none.
    """
    named = f"{name} {path}" if name else str(path)
    try:
        expanded = Path(path).expanduser()
        if b"\0" in os.fsencode(expanded):
            raise UserError(f"{named!r} is not a path: it has a null character in it", hint="correct it")
    except RuntimeError:
        raise UserError(f"{named}: there is no home folder for ~ in it", hint="write the whole path") from None
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        hint = "export PYTHONUTF8=1" if encoding != "utf-8" else "correct it"
        raise UserError(f"{named!a} is not a path in the encoding of this system, {encoding}", hint=hint) from None
    return expanded


def config_file() -> Path:
    """Return the user's configuration file, which may not exist."""
    return _folder("config") / "config.yaml"


def data_dir() -> Path:
    """Return the folder of files that are costly to make again: the converted demo model."""
    return _folder("data")


def cache_dir() -> Path:
    """Return the folder of files that only save time: the quantised cache."""
    return _folder("cache")


def state_dir() -> Path:
    """Return the folder of state that is kept between commands."""
    return _folder("state")


def log_dir() -> Path:
    """Return the folder of bug reports."""
    return _folder("log")


def check_writable(*paths: Path) -> None:
    """Check, before the work whose result goes there, that files or folders can be created at `paths`.

    Raises:
        OSError: one of them cannot. Its file name is that of the folder which refuses.
    """
    for folder in dict.fromkeys(existing_parent(path.absolute()) for path in paths):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            error.filename = str(folder)
            raise


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above `path` that exists, or `path` itself; it is on the same file system."""
    while path != path.parent:
        try:
            path.stat()
        except OSError:
            path = path.parent
        else:
            break
    return path


def check_output(path: Path, *, flag: str) -> None:
    """Check that a file which the user names can be written, before the work whose result goes there.

    Raises:
        UserError: it is a folder.
        MachineError: this user may not write there.
    """
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder", hint="give the name of a file")
    try:
        check_writable(path.absolute().parent)
    except OSError as error:
        raise MachineError(
            f"{flag} {path} cannot be written: {error.strerror}", hint="choose a file that you may write"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)  # not a name that nobody knows
        raise
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
