"""The models in the cache, listed and removed, and what `prune` may remove.

No function opens a socket, and only the headers of weights are read, so a cache of hundreds of models is listed at
once.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import MachineError, ModelError, UserError
from llmctl.hub import settings
from llmctl.hub.cache import disk
from llmctl.hub.cache.paths import OURS, bytes_on_disk, identities, near_names
from llmctl.hub.cache.snapshot import cached_commit, files_of, missing_files
from llmctl.hub.cache.writer_lock import lock_path, locked
from llmctl.model.info import ModelInfo, read_model_info

_YOUNG_SECONDS = 3600.0  # another program may still be writing a partial file that is younger than this


@dataclass(frozen=True)
class CachedModel:
    """One snapshot of a model in the cache.

    Attributes:
        revisions: Branches and tags that point to this commit, as last fetched.
        folder: Folder of the snapshot.
        size_bytes: Size of its files.
        missing: Missing files that are needed for loading.
        last_used: Time when a file was last read, in seconds since 1970, with the precision of the file system.
        info: Properties of the model; None if its files cannot be read.
    """

    repo_id: str
    commit: str
    revisions: tuple[str, ...]
    folder: Path
    size_bytes: int
    missing: tuple[str, ...]
    last_used: float
    info: ModelInfo | None


@dataclass(frozen=True)
class Waste:
    """Something in the cache that no model needs.

    Attributes:
        path: File or folder.
        size_bytes: Bytes that its removal frees.
        why: `partial`, `orphan` or `old revision`.
        repo_id: Model it belongs to.
    """

    path: Path
    size_bytes: int
    why: str
    repo_id: str


def cached_models(*, unreadable: Callable[[str, OSError], None]) -> tuple[CachedModel, ...]:
    """Return every snapshot of every model in the cache, by name.

    Args:
        unreadable: Receives the id of a model that this user may not read, which is left out, and the error.
    """
    models: list[CachedModel] = []
    for repo in _repos():
        try:
            models += _snapshots_of(repo)
        except OSError as error:
            unreadable(settings.repo_id_of(repo), error)
    return tuple(models)


def _snapshots_of(repo: Path) -> list[CachedModel]:
    refs, models = _refs(repo), []
    for folder in _snapshots(repo):
        names = tuple(sorted(name for name, commit in refs.items() if commit == folder.name))
        models.append(_cached_model(settings.repo_id_of(repo), folder, names))
    return models


def find_model(repo_id: str, *, revision: str | None = None) -> CachedModel:
    """Return one model of the cache.

    Raises:
        UserError: it is not there.
    """
    commit = cached_commit(repo_id, revision=revision)
    folder = settings.repo_dir(repo_id) / "snapshots" / (commit or "-")
    if commit is None or not folder.is_dir():
        near = near_names(repo_id)
        at = f" at {revision}" if revision else ""
        raise UserError(
            f"{repo_id}{at} is not in the cache {settings.cache_dir()}",
            hint=f"there is {', '.join(near)}" if near else f"llmctl download {repo_id}",
        )
    names = tuple(sorted(name for name, c in _refs(settings.repo_dir(repo_id)).items() if c == commit))
    return _cached_model(repo_id, folder, names)


def check_cached(repo_id: str) -> None:
    """Raise UserError if a model is not in the cache."""
    if not settings.repo_dir(repo_id).is_dir():
        near = near_names(repo_id)
        hint = f"there is {', '.join(near)}" if near else "see: llmctl models list"
        raise UserError(f"{repo_id} is not in the cache", hint=hint)


def remove_model(repo_id: str) -> int:
    """Remove a model with all its revisions, and return the bytes freed.

    Raises:
        UserError: it is not in the cache.
        MachineError: a process is downloading it.
    """
    check_cached(repo_id)
    repo = settings.repo_dir(repo_id)
    size = bytes_on_disk(repo.rglob("*"))
    try:
        with locked(repo_id, timeout_seconds=0, note=_ignore):
            shutil.rmtree(repo)
    except OSError as error:
        raise disk.explain(error, repo) or error from error
    return size


def find_waste() -> tuple[Waste, ...]:
    """Return what a prune would remove: partial files, blobs that no snapshot names, snapshots that no ref names.

    A snapshot is old when a branch or tag of the same model has moved on to another commit. Models that a process is
    downloading now are skipped, and so are recent partial files of other programs.
    """
    waste: list[Waste] = []
    for repo in _repos():
        repo_id = settings.repo_id_of(repo)
        if _is_busy(repo_id):
            continue
        old = set(_old_snapshots(repo))
        used = {p.resolve() for folder in _snapshots(repo) if folder not in old for p in folder.rglob("*")}
        freed = {p.resolve() for folder in old for p in folder.rglob("*") if p.is_symlink()} - used
        kept = identities(used)
        for folder in sorted(old):
            content = identities(p.resolve() for p in folder.rglob("*"))
            size = sum(size for identity, size in content.items() if identity not in kept)
            kept |= content  # each byte is freed once
            waste.append(Waste(folder, size, "old revision", repo_id))
        for blob in sorted((repo / "blobs").glob("*")):
            if ".incomplete" in blob.name:
                is_ours = OURS in blob.name
                if is_ours or time.time() - blob.stat().st_mtime > _YOUNG_SECONDS:
                    waste.append(Waste(blob, _file_size(blob), "partial", repo_id))
            elif blob.resolve() not in used | freed and not blob.is_symlink():
                waste.append(Waste(blob, _file_size(blob), "orphan", repo_id))
    return tuple(waste)


def remove_waste(waste: tuple[Waste, ...]) -> int:
    """Remove items of `find_waste`, and return the bytes freed. Models being downloaded are skipped."""
    freed = 0
    for repo_id in sorted({item.repo_id for item in waste}):
        try:
            with locked(repo_id, timeout_seconds=0, note=_ignore):
                freed += sum(_remove(item) for item in waste if item.repo_id == repo_id)
        except MachineError:
            continue
    return freed


def _remove(item: Waste) -> int:
    if item.why != "old revision":
        item.path.unlink(missing_ok=True)
        return item.size_bytes
    repo = item.path.parent.parent
    blobs = {p.resolve() for p in item.path.rglob("*") if p.is_symlink()}
    kept = {p.resolve() for folder in _snapshots(repo) if folder != item.path for p in folder.rglob("*")}
    shutil.rmtree(item.path, ignore_errors=True)
    (repo / "llmctl" / f"{item.path.name}.json").unlink(missing_ok=True)
    (repo / "trees" / f"{item.path.name}.json").unlink(missing_ok=True)
    for blob in blobs - kept:
        if blob.parent == (repo / "blobs").resolve():
            blob.unlink(missing_ok=True)
    return item.size_bytes


def _cached_model(repo_id: str, folder: Path, revisions: tuple[str, ...]) -> CachedModel:
    before = {folder / name: (folder / name).stat() for name in files_of(folder)}
    try:
        info: ModelInfo | None = read_model_info(folder, source=repo_id, commit=folder.name)
    except (ModelError, MachineError, OSError):
        info = None
    missing = missing_files(repo_id, folder.name, folder)
    for path, stat in before.items():  # listing a model must not count as using it
        with suppress(OSError):
            if path.stat().st_atime_ns != stat.st_atime_ns:
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    size = sum(stat.st_size for stat in before.values())
    last_used = max((stat.st_atime for stat in before.values()), default=0.0)
    return CachedModel(repo_id, folder.name, revisions, folder, size, missing, last_used, info)


def _repos() -> Iterator[Path]:
    cache = settings.cache_dir()
    if cache.is_dir():
        yield from sorted(entry for entry in cache.iterdir() if entry.name.startswith("models--") and entry.is_dir())


def _snapshots(repo: Path) -> list[Path]:
    folder = repo / "snapshots"
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _refs(repo: Path) -> dict[str, str]:
    refs = repo / "refs"
    return {
        path.relative_to(refs).as_posix(): path.read_text(encoding="utf-8", errors="replace").strip()
        for path in sorted(refs.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _old_snapshots(repo: Path) -> list[Path]:
    """Return snapshots that no ref names, if some ref names another one. A commit downloaded by its hash has no ref."""
    named = set(_refs(repo).values())
    folders = _snapshots(repo)
    if not any(folder.name in named for folder in folders):
        return []
    return [folder for folder in folders if folder.name not in named]


def _is_busy(repo_id: str) -> bool:
    """Return True if a process is downloading the model now."""
    if not lock_path(repo_id).exists():
        return False
    try:
        with locked(repo_id, timeout_seconds=0, note=_ignore):
            return False
    except MachineError:
        return True
    except OSError:  # the cache is read-only
        return False


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _ignore(_note: str) -> None:
    """Do nothing: with a timeout of 0 there is no wait to report."""
