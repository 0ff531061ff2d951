"""The plan of a download: the files to fetch, and the bytes that are already on the disk."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmctl.hub import settings
from llmctl.hub.cache.lockfile import Record, read_record
from llmctl.hub.download.partial import partial_path
from llmctl.hub.download.progress import Progress
from llmctl.hub.http import Patience, refuse_if_offline
from llmctl.hub.listing import Listing, RemoteFile, fetch_listing
from llmctl.hub.selection import Patterns, needed, required, select


@dataclass(frozen=True)
class Limits:
    """The limits of a download.

    Attributes:
        patience: Attempts and pauses on a failing network.
        workers: Files fetched at once.
        lock_timeout_seconds: Longest wait for another process that downloads the same model; None: no limit.
    """

    patience: Patience = field(default_factory=Patience)
    workers: int = 8
    lock_timeout_seconds: float | None = None


@dataclass(frozen=True)
class PlannedFile:
    """One file of a download.

    Attributes:
        file: Path, size and hash.
        bytes_here: Bytes that are already on the disk.
        is_here: True if the complete file is in the cache.
        twin: A file with the same content that has no blob, because the cache has no links.
    """

    file: RemoteFile
    bytes_here: int
    is_here: bool
    twin: Path | None = None


@dataclass(frozen=True)
class DownloadPlan:
    """The files of a download, determined from the listing and the cache before the first byte is fetched.

    Attributes:
        revision: Requested revision; None for the default branch.
        commit: Commit that the revision is now.
        patterns: Patterns that choose the files.
        needed: Paths that loading needs, taken or not.
        folder: Folder of the snapshot, which need not exist yet.
    """

    repo_id: str
    revision: str | None
    commit: str
    patterns: Patterns
    files: tuple[PlannedFile, ...]
    needed: tuple[str, ...]
    folder: Path

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(planned.file.size_bytes for planned in self.files)

    @property
    def fetch_bytes(self) -> int:
        """The bytes that are not on the disk yet."""
        return sum(p.file.size_bytes - p.bytes_here for p in by_blob(self.files))

    @property
    def record(self) -> Record:
        """The lock file after this download."""
        files = tuple(planned.file for planned in self.files)
        return Record(self.repo_id, self.revision, self.commit, self.patterns, files, self.needed)

    @property
    def is_loadable(self) -> bool:
        """True if the files are sufficient to load the model."""
        taken = {planned.file.path for planned in self.files}
        return bool(self.needed) and set(required(self.needed, taken)) <= taken


def plan_download(
    repo_id: str,
    *,
    revision: str | None = None,
    patterns: Patterns | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> DownloadPlan:
    """Return the plan that `download` would carry out, without writing anything.

    Raises:
        RemoteError: the Hub refuses, or cannot be reached.
        ModelError: there are no weights that llmctl loads.
        UserError: the id or the patterns have to change.
    """
    refuse_if_offline(f"what {repo_id} holds now")
    patience, note = (limits or Limits()).patience, progress.note if progress else None
    listing = fetch_listing(repo_id, revision=revision, patience=patience, note=note)
    return _plan(listing, revision, patterns or Patterns())


def _plan(listing: Listing, revision: str | None, patterns: Patterns) -> DownloadPlan:
    names = [file.path for file in listing.files]
    taken = set(select(listing.repo_id, names, patterns))
    folder = settings.repo_dir(listing.repo_id) / "snapshots" / listing.commit
    wanted = [file for file in listing.files if file.path in taken]
    return DownloadPlan(
        repo_id=listing.repo_id,
        revision=revision,
        commit=listing.commit,
        patterns=patterns,
        files=planned_files(listing.repo_id, folder, wanted),
        needed=needed(names, trust_remote_code=patterns.trust_remote_code),
        folder=folder,
    )


def planned_files(repo_id: str, folder: Path, files: Sequence[RemoteFile]) -> tuple[PlannedFile, ...]:
    """Return the plan for each file, with the bytes that are already on the disk."""
    twins = _files_without_blobs(repo_id, folder, files)
    return tuple(_planned_file(repo_id, folder, file, twins.get(file.digest)) for file in files)


def _planned_file(repo_id: str, folder: Path, file: RemoteFile, twin: Path | None) -> PlannedFile:
    blob = blob_path(repo_id, file)
    if _size(blob) == file.size_bytes:
        return PlannedFile(file, file.size_bytes, is_here=_size(folder / file.path) == file.size_bytes)
    if twin is not None:
        is_here = _is_real(folder / file.path, file.size_bytes)
        return PlannedFile(file, file.size_bytes, is_here=is_here, twin=twin)
    return PlannedFile(file, min(_size(partial_path(blob)) or 0, file.size_bytes), is_here=False)


def _files_without_blobs(repo_id: str, folder: Path, files: Sequence[RemoteFile]) -> dict[str, Path]:
    """Return the files that a cache without links has in this snapshot and in others of the model, by their hash."""
    snapshots = folder.parent
    known = [(folder, file) for file in files]
    for path in sorted((settings.repo_dir(repo_id) / "llmctl").glob("*.json")):
        record = read_record(repo_id, path.stem)
        known += [(snapshots / record.commit, file) for file in record.files] if record else []
    found: dict[str, Path] = {}
    for place, file in known:
        if file.digest not in found and _is_real(place / file.path, file.size_bytes):
            found[file.digest] = place / file.path
    return found


def refreshed(plan: DownloadPlan) -> DownloadPlan:
    """Return the plan updated to the current disk contents, which another process may have changed."""
    files = planned_files(plan.repo_id, plan.folder, [planned.file for planned in plan.files])
    return replace(plan, files=files)


def blob_path(repo_id: str, file: RemoteFile) -> Path:
    """Return the path of a file's content in the cache."""
    return settings.repo_dir(repo_id) / "blobs" / file.digest


def has_blob(plan: DownloadPlan, planned: PlannedFile) -> bool:
    return _size(blob_path(plan.repo_id, planned.file)) == planned.file.size_bytes


def by_blob(files: Sequence[PlannedFile]) -> list[PlannedFile]:
    """Return one file for each content: files with the same content share a blob."""
    return list({planned.file.digest: planned for planned in files}.values())


def _is_real(path: Path, size_bytes: int) -> bool:
    """Return True for a file of this size that is not a link."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
