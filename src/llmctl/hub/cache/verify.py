"""The check of a cached model: every file is hashed and compared with the repository's listing, without the network."""

import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmctl.errors import OfflineError
from llmctl.hub import settings
from llmctl.hub.cache.lockfile import read_record
from llmctl.hub.cache.snapshot import cached_commit, files_of, kept_listing
from llmctl.hub.listing import RemoteFile
from llmctl.hub.selection import needed

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_READ_BYTES = 4 << 20

State = Literal["ok", "damaged", "missing"]


@dataclass(frozen=True)
class CheckedFile:
    """One file and the result of its check."""

    file: RemoteFile
    state: State


@dataclass(frozen=True)
class Verification:
    """A model and the results of its check.

    Attributes:
        revision: Requested revision.
        commit: Commit that was checked.
        folder: Folder of the snapshot.
        source: Origin of the hashes: `lock file`, `listing` (huggingface_hub's) or `names of the blobs`.
        unchecked: Names of the other files of the snapshot, whose hashes are not known.
    """

    repo_id: str
    revision: str | None
    commit: str
    folder: Path
    files: tuple[CheckedFile, ...]
    source: str
    unchecked: tuple[str, ...] = ()

    @property
    def bad(self) -> tuple[CheckedFile, ...]:
        """The files that are damaged or missing."""
        return tuple(checked for checked in self.files if checked.state != "ok")


def verify(
    repo_id: str, *, revision: str | None = None, finished: Callable[[str, State], None] | None = None
) -> Verification:
    """Hash every file of a cached model and compare the hashes, without network access.

    The hashes come from llmctl's lock file; for a model that another program fetched, from huggingface_hub's kept
    listing, or from the names of the blobs, which are the hashes.

    Raises:
        OfflineError: the model is not in the cache.
    """
    commit = cached_commit(repo_id, revision=revision)
    folder = settings.repo_dir(repo_id) / "snapshots" / (commit or "-")
    if commit is None or not folder.is_dir():
        raise OfflineError(
            f"{repo_id} is not in the cache {settings.cache_dir()}, so there is nothing to verify",
            hint=f"llmctl download {repo_id}",
        )
    files, source = expected_files(repo_id, commit, folder)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        states = pool.map(lambda file: _reported(file, check(folder / file.path, file), finished), files)
        checked = tuple(CheckedFile(file, state) for file, state in zip(files, states, strict=True))
    unchecked = tuple(sorted(set(files_of(folder)) - {file.path for file in files}))
    return Verification(repo_id, revision, commit, folder, checked, source, unchecked)


def check(path: Path, file: RemoteFile) -> State:
    """Read one file and compare its hash."""
    try:
        size = path.stat().st_size
        if size != file.size_bytes and file.size_bytes >= 0:
            return "damaged"
        if file.algorithm == "sha256":
            hasher = hashlib.sha256()
        else:
            hasher = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                hasher.update(piece)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "damaged"  # the disk cannot read it
    return "ok" if hasher.hexdigest() == file.digest else "damaged"


def expected_files(repo_id: str, commit: str, folder: Path) -> tuple[tuple[RemoteFile, ...], str]:
    """Return the files that a snapshot should hold and the source of that list. Size -1 means unknown."""
    record = read_record(repo_id, commit)
    if record is not None:
        return record.files, "lock file"
    present = set(_links_of(folder))
    listing = kept_listing(repo_id, commit)
    if listing:
        return tuple(listing[name] for name in sorted(present | set(needed(listing))) if name in listing), "listing"
    files = []
    for name in sorted(present):
        link = folder / name
        blob = link.readlink().name if link.is_symlink() else ""  # only the first link: blobs may be links, too
        if _BLOB.fullmatch(blob):
            files.append(RemoteFile(name, -1, "sha256" if len(blob) == 64 else "git_sha1", blob))
    return tuple(files), "names of the blobs"


def _reported(file: RemoteFile, state: State, finished: Callable[[str, State], None] | None) -> State:
    if finished is not None:
        finished(file.path, state)
    return state


def _links_of(folder: Path) -> list[str]:
    """Return the names in a snapshot, including broken links."""
    broken = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() and not p.exists()]
    return files_of(folder) + broken
