"""Snapshots of models in huggingface_hub's standard cache, found without the network and without reading weights.

The layout is huggingface_hub's: `refs/NAME` holds a commit, `snapshots/COMMIT/` the names of the files, `blobs/` their
contents under their hashes. Files that `hf download` or transformers put there count as much as llmctl's own.
"""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from llmctl.hub import settings
from llmctl.hub.cache.lockfile import Record, read_record
from llmctl.hub.listing import RemoteFile
from llmctl.hub.selection import ADAPTER, WEIGHTS, WEIGHTS_INDEX, is_tokenizer, needed, required

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class Snapshot:
    """A model in the cache, complete enough to be loaded.

    Attributes:
        revision: Requested branch, tag or commit; None for the default branch.
        commit: Commit, 40 hexadecimal digits.
        folder: Folder to pass to transformers.
        files: Sorted paths of the files below that folder.
        size_bytes: Total size of these files.
    """

    repo_id: str
    revision: str | None
    commit: str
    folder: Path
    files: tuple[str, ...]
    size_bytes: int

    @property
    def is_adapter(self) -> bool:
        """True if the snapshot is an adapter, not a model."""
        return ADAPTER[0] in self.files and "config.json" not in self.files


@dataclass(frozen=True)
class CacheEntry:
    """The state of a model in the cache at one revision, complete or not.

    Attributes:
        folder: Folder of the snapshot, or None.
        commit: Commit; None if the cache has no commit for the revision.
        missing: Missing or truncated files that are needed for loading; empty for a complete model.
    """

    folder: Path | None
    commit: str | None
    missing: tuple[str, ...]


def find_snapshot(repo_id: str, *, revision: str | None = None) -> Snapshot | None:
    """Return the complete snapshot of `repo_id` in the cache; None if absent or incomplete. No network access."""
    entry = look_up(repo_id, revision=revision)
    if entry.folder is None or entry.commit is None or entry.missing:
        return None
    return make_snapshot(repo_id, revision=revision, commit=entry.commit, folder=entry.folder)


def look_up(repo_id: str, *, revision: str | None = None) -> CacheEntry:
    """Return the state of `repo_id` in the cache."""
    commit = cached_commit(repo_id, revision=revision)
    if commit is None:
        return CacheEntry(None, None, ())
    folder = settings.repo_dir(repo_id) / "snapshots" / commit
    if not folder.is_dir():
        return CacheEntry(None, commit, ())
    return CacheEntry(folder, commit, missing_files(repo_id, commit, folder))


def make_snapshot(repo_id: str, *, revision: str | None, commit: str, folder: Path) -> Snapshot:
    """Describe a snapshot that is known to be complete."""
    sizes = {name: (folder / name).stat().st_size for name in files_of(folder)}
    return Snapshot(repo_id, revision, commit, folder, tuple(sorted(sizes)), sum(sizes.values()))


def cached_commit(repo_id: str, *, revision: str | None = None) -> str | None:
    """Return the commit of `revision` when it was last fetched, or None."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    refs = settings.repo_dir(repo_id) / "refs"
    file = refs / (revision or "main")
    if refs not in file.parents or ".." in file.parts:
        return None
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return text if _COMMIT.fullmatch(text) else None


def files_of(folder: Path) -> list[str]:
    """Return the paths of files below a snapshot's folder, without links to missing blobs."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def missing_files(repo_id: str, commit: str, folder: Path) -> tuple[str, ...]:
    """Return the files that loading needs and the snapshot lacks.

    Three sources tell what is needed, the best first: llmctl's own lock file, the listing that huggingface_hub keeps
    beside its snapshots (`trees/COMMIT.json`), and the content of the files that are there.
    """
    record = read_record(repo_id, commit)
    if record is not None and record.needed:
        sizes = {file.path: file.size_bytes for file in record.files}
        return tuple(p for p in required(record.needed, sizes) if not _is_whole(folder / p, sizes.get(p)))
    listing = kept_listing(repo_id, commit)
    if wanted := needed(listing):
        return tuple(p for p in wanted if not _is_whole(folder / p, listing[p].size_bytes))
    return _missing_by_content(folder)


def record_of(repo_id: str, *, revision: str | None = None) -> Record | None:
    """Return the lock file of a model in the cache, or None."""
    commit = cached_commit(repo_id, revision=revision)
    return read_record(repo_id, commit) if commit else None


def shards_of(index: Path) -> tuple[str, ...]:
    """Return the shards that a `model.safetensors.index.json` names; empty if it cannot be read."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return tuple(sorted({str(name) for name in names}))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return ()


def is_whole_safetensors(path: Path) -> bool:
    """Return True if a safetensors file has the length that its header states. Only the header is read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, size):
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        return False
    return bool(size == 8 + length + max(ends, default=0))


def _missing_by_content(folder: Path) -> tuple[str, ...]:
    """Return the missing files of a snapshot from another program, which has no listing."""
    if (folder / ADAPTER[0]).is_file() and not (folder / "config.json").is_file():
        return () if is_whole_safetensors(folder / ADAPTER[1]) else (ADAPTER[1],)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if (folder / WEIGHTS).is_file():
        weights: tuple[str, ...] = (WEIGHTS,)
    elif (folder / WEIGHTS_INDEX).is_file():
        weights = shards_of(folder / WEIGHTS_INDEX) or (WEIGHTS_INDEX,)
    else:
        weights = (WEIGHTS,)
    missing += [name for name in weights if not is_whole_safetensors(folder / name)]
    if not any(is_tokenizer(name) for name in files_of(folder)):
        missing.append("tokenizer.json")
    return tuple(missing)


def _is_whole(path: Path, size_bytes: int | None) -> bool:
    try:
        return path.is_file() and size_bytes in (None, path.stat().st_size)
    except OSError:
        return False


def kept_listing(repo_id: str, commit: str) -> dict[str, RemoteFile]:
    """Return the listing that huggingface_hub keeps beside its snapshots (`trees/COMMIT.json`); empty without one."""
    path = settings.repo_dir(repo_id) / "trees" / f"{commit}.json"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {
            str(name): RemoteFile(str(name), int(entry["lfs_size"]), "sha256", str(entry["lfs_sha256"]))
            if entry.get("lfs_sha256")
            else RemoteFile(str(name), int(entry["size"]), "git_sha1", str(entry["blob_id"]))
            for name, entry in files.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
