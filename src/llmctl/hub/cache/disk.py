"""The disk that holds the cache: its free space, and its errors translated."""

import errno
import shutil
from pathlib import Path

from llmctl.errors import MachineError
from llmctl.hub import settings
from llmctl.paths import existing_parent
from llmctl.units import format_bytes

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def free_bytes(path: Path) -> int:
    """Return the free bytes for this user on the file system of `path`, which need not exist yet."""
    return shutil.disk_usage(existing_parent(path)).free


def check_room(needed_bytes: int, path: Path) -> None:
    """Check that `needed_bytes` fit at `path`.

    Raises:
        MachineError: they do not; the message has both figures and the place.
    """
    free = free_bytes(path)
    if needed_bytes > free:
        raise _no_room(needed_bytes, free, path)


def is_read_only(error: OSError) -> bool:
    """Return True if an error means that this user has no permission to write."""
    return error.errno in _READ_ONLY


def explain(error: OSError, path: Path, *, needed_bytes: int | None = None) -> MachineError | None:
    """Return the error of llmctl for a disk error; None for other errors (huggingface_hub's are OSErrors, too)."""
    if error.errno in _FULL:
        return _no_room(needed_bytes or 0, free_bytes(path), path)
    if is_read_only(error):
        cache, refusing = settings.cache_dir(), Path(error.filename or path)
        place = refusing if refusing.is_relative_to(cache) and refusing.is_dir() else cache
        return MachineError(
            f"cannot write to the cache folder {place}: {error.strerror}",
            hint="point HF_HOME (or HF_HUB_CACHE) to a folder that you may write to; what is cached still loads",
            details={"path": str(error.filename or path)},
        )
    if error.errno is None:
        return None
    if error.errno == errno.EFBIG:
        return MachineError("a file may not be that large here", hint="raise the limit: ulimit -f unlimited")
    return MachineError(
        f"the disk refuses {error.filename or path}: {error.strerror}",
        hint="is HF_HOME (or HF_HUB_CACHE) a folder on a healthy disk? what arrived is kept",
        details={"path": str(error.filename or path)},
    )


def _no_room(needed_bytes: int, free: int, path: Path) -> MachineError:
    place = existing_parent(path)
    return MachineError(
        f"the disk is too full: {format_bytes(needed_bytes)} are needed and {format_bytes(free)} are free at {place}",
        hint="make room (llmctl models prune), or point HF_HOME to a larger disk; what arrived is kept",
        details={"needed_bytes": needed_bytes, "free_bytes": free, "path": str(place)},
    )
