"""The hashes of a model's files: the blob names of the Hub's cache, or computed once and stored.

They are stored in `file_hashes.json` in llmctl's state folder. A stored hash is valid while the file's size,
modification time and inode stay the same.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.hub.cache.snapshot import files_of
from llmctl.hub.cache.verify import check, expected_files
from llmctl.hub.listing import RemoteFile
from llmctl.hub.selection import ADAPTER, needed
from llmctl.paths import state_dir, write_atomically

if TYPE_CHECKING:
    from llmctl.model.adapters import AdapterInfo
    from llmctl.model.resolve import ResolvedModel

_RECENT_SECONDS = 2  # a file that was modified more recently could change again without a new modification time
_MAX_STORED = 10_000


def adapter_files(adapter: "AdapterInfo") -> tuple[RemoteFile, ...]:
    """Return the two files of an adapter, with size and hash. Raise OSError if one cannot be read."""
    from llmctl.model.resolve import ResolvedModel

    return _hashed(ResolvedModel(adapter.source, adapter.folder, adapter.commit, ""), ADAPTER)


def model_files(resolved: "ResolvedModel", *, trust_remote_code: bool = False) -> tuple[RemoteFile, ...]:
    """Return every file that is read to load the model, with size and hash, sorted by path.

    Args:
        trust_remote_code: Include Python files.

    Raises:
        OSError: a file cannot be read.
    """
    return _hashed(resolved, needed(files_of(resolved.folder), trust_remote_code=trust_remote_code))


def _hashed(resolved: "ResolvedModel", names: Sequence[str]) -> tuple[RemoteFile, ...]:
    known = _from_cache(resolved)
    if all(name in known for name in names):
        return tuple(known[name] for name in names)
    stored = _read()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        digests = list(pool.map(lambda name: _digest(resolved.folder / name, stored), names))
    _store(stored, {str(resolved.folder / name): entry for name, (entry, _) in zip(names, digests, strict=True)})
    return tuple(
        RemoteFile(name, entry[0], "sha256", digest) for name, (entry, digest) in zip(names, digests, strict=True)
    )


def unknown_bytes(resolved: "ResolvedModel", *, trust_remote_code: bool = False) -> int:
    """Return the number of bytes that `model_files` would have to read and hash."""
    names = needed(files_of(resolved.folder), trust_remote_code=trust_remote_code)
    known = _from_cache(resolved)
    if all(name in known for name in names):
        return 0
    stored = _read()
    paths = [resolved.folder / name for name in names]
    return sum(path.stat().st_size for path in paths if _look_up(path, stored) is None)


def is_same_file(current: RemoteFile, recorded: RemoteFile, folder: Path) -> bool:
    """Return True if two entries describe the same file; `folder` is read if they use different hash algorithms."""
    if current.algorithm == recorded.algorithm:
        return current.digest == recorded.digest
    return check(folder / current.path, recorded) == "ok"


def _from_cache(resolved: "ResolvedModel") -> dict[str, RemoteFile]:
    """Return the files whose hashes are in the Hub's cache, by path."""
    if resolved.commit is None or resolved.demo:
        return {}
    files, _ = expected_files(resolved.source, resolved.commit, resolved.folder)
    return {
        file.path: RemoteFile(file.path, _size(resolved.folder / file.path, file), file.algorithm, file.digest)
        for file in files
    }


def _size(path: Path, file: RemoteFile) -> int:
    return file.size_bytes if file.size_bytes >= 0 or not path.exists() else path.stat().st_size


def _digest(path: Path, stored: Mapping[str, Any]) -> tuple[list[Any], str]:
    """Return the entry to store for a file, and its sha256."""
    status = path.stat()
    digest = _look_up(path, stored)
    if digest is None:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return [status.st_size, status.st_mtime_ns, status.st_ino, digest], digest


def _look_up(path: Path, stored: Mapping[str, Any]) -> str | None:
    entry, status = stored.get(str(path)), path.stat()
    if isinstance(entry, list) and entry[:3] == [status.st_size, status.st_mtime_ns, status.st_ino]:
        return str(entry[3])
    return None


def _file() -> Path:
    return state_dir() / "file_hashes.json"


def _read() -> dict[str, Any]:
    """Return the stored hashes; empty if the file cannot be read."""
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = content if isinstance(content, dict) else {}
    return {path: entry for path, entry in entries.items() if isinstance(entry, list) and len(entry) == 4}


def _store(before: Mapping[str, Any], new: Mapping[str, list[Any]]) -> None:
    """Store the hashes of files that were not modified just now, newest last. A failure to write is ignored."""
    older = {path: entry for path, entry in new.items() if time.time() - entry[1] / 1e9 > _RECENT_SECONDS}
    if all(before.get(path) == entry for path, entry in older.items()):
        return
    kept = {path: entry for path, entry in before.items() if path not in older} | older
    with suppress(OSError):
        write_atomically(_file(), json.dumps(dict(list(kept.items())[-_MAX_STORED:]), indent=0) + "\n")
