"""The hashes of a model's files: from the Hub's cache, where they name the files, or computed once and remembered.

What is remembered lies in `file_hashes.json` of llmctl's state folder. It holds for a file of the same size, the same
time of change and the same inode.
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

from llmctl.hub.cache import files_of
from llmctl.hub.listing import RemoteFile
from llmctl.hub.selection import ADAPTER, needed
from llmctl.hub.verify import check, expected_files
from llmctl.paths import state_dir, write_atomically

if TYPE_CHECKING:
    from llmctl.model.adapters import AdapterInfo
    from llmctl.model.resolve import Located

_SETTLED_SECONDS = 2  # a file that changed less than this ago could change again without a trace
_MOST_REMEMBERED = 10_000


def adapter_files(adapter: "AdapterInfo") -> tuple[RemoteFile, ...]:
    """The two files of an adapter, as `model_files` gives those of a model. Raises OSError."""
    from llmctl.model.resolve import Located

    return _hashed(Located(adapter.source, adapter.folder, adapter.commit, ""), ADAPTER)


def model_files(located: "Located", *, trust_remote_code: bool = False) -> tuple[RemoteFile, ...]:
    """Every file that loading the model reads, with its size and hash, sorted by path.

    Args:
        located: Where the files are.
        trust_remote_code: Whether its Python files count too.

    Raises:
        OSError: a file cannot be read.
    """
    return _hashed(located, needed(files_of(located.folder), trust_remote_code=trust_remote_code))


def _hashed(located: "Located", names: Sequence[str]) -> tuple[RemoteFile, ...]:
    known = _from_cache(located)
    if all(name in known for name in names):
        return tuple(known[name] for name in names)
    remembered = _read()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        digests = list(pool.map(lambda name: _digest(located.folder / name, remembered), names))
    _remember(remembered, {str(located.folder / name): entry for name, (entry, _) in zip(names, digests, strict=True)})
    return tuple(
        RemoteFile(name, entry[0], "sha256", digest) for name, (entry, digest) in zip(names, digests, strict=True)
    )


def unknown_bytes(located: "Located", *, trust_remote_code: bool = False) -> int:
    """How many bytes `model_files` would have to read."""
    names = needed(files_of(located.folder), trust_remote_code=trust_remote_code)
    known = _from_cache(located)
    if all(name in known for name in names):
        return 0
    remembered = _read()
    paths = [located.folder / name for name in names]
    return sum(path.stat().st_size for path in paths if _look_up(path, remembered) is None)


def is_same(here: RemoteFile, there: RemoteFile, folder: Path) -> bool:
    """Whether a file is the one that another hash was of; read again where the two were hashed differently."""
    if here.algorithm == there.algorithm:
        return here.digest == there.digest
    return check(folder / here.path, there) == "ok"


def _from_cache(located: "Located") -> dict[str, RemoteFile]:
    """The hashes that the Hub's cache knows its files by."""
    if located.commit is None or located.demo:
        return {}
    files, _ = expected_files(located.source, located.commit, located.folder)
    return {
        file.path: RemoteFile(file.path, _size(located.folder / file.path, file), file.algorithm, file.digest)
        for file in files
    }


def _size(path: Path, file: RemoteFile) -> int:
    return file.size_bytes if file.size_bytes >= 0 or not path.exists() else path.stat().st_size


def _digest(path: Path, remembered: Mapping[str, Any]) -> tuple[list[Any], str]:
    """What is remembered of a file, and its sha256."""
    status = path.stat()
    found = _look_up(path, remembered)
    if found is None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    return [status.st_size, status.st_mtime_ns, status.st_ino, found], found


def _look_up(path: Path, remembered: Mapping[str, Any]) -> str | None:
    entry, status = remembered.get(str(path)), path.stat()
    if isinstance(entry, list) and entry[:3] == [status.st_size, status.st_mtime_ns, status.st_ino]:
        return str(entry[3])
    return None


def _file() -> Path:
    return state_dir() / "file_hashes.json"


def _read() -> dict[str, Any]:
    """What is remembered; an unreadable file counts as nothing."""
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = content if isinstance(content, dict) else {}
    return {path: entry for path, entry in entries.items() if isinstance(entry, list) and len(entry) == 4}


def _remember(before: Mapping[str, Any], new: Mapping[str, list[Any]]) -> None:
    """Keep what has not changed just now, the newest last. Where it cannot be written, the next time hashes again."""
    settled = {path: entry for path, entry in new.items() if time.time() - entry[1] / 1e9 > _SETTLED_SECONDS}
    if all(before.get(path) == entry for path, entry in settled.items()):
        return
    kept = {path: entry for path, entry in before.items() if path not in settled} | settled
    with suppress(OSError):
        write_atomically(_file(), json.dumps(dict(list(kept.items())[-_MOST_REMEMBERED:]), indent=0) + "\n")
