"""From a repository on the Hub to a snapshot in the cache: what to take, whether it fits, and the taking."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmctl.errors import LlmctlError, MachineError, ModelError, OfflineError
from llmctl.hub import access, disk, settings
from llmctl.hub.cache import Snapshot, cached_commit, find_snapshot, look_up, make_snapshot, shards_of
from llmctl.hub.cache_paths import leftovers, link, write_ref
from llmctl.hub.http import Patience, refuse_if_offline
from llmctl.hub.listing import Listing, RemoteFile, check_id, fetch_listing
from llmctl.hub.lockfile import Record, read_record, write_record
from llmctl.hub.partial import partial_path
from llmctl.hub.progress import Progress, Silent
from llmctl.hub.selection import WEIGHTS_INDEX, Patterns, needed, required, select
from llmctl.hub.transfer import Job, Transfer
from llmctl.hub.writer_lock import locked


@dataclass(frozen=True)
class Limits:
    """How a download behaves against network, disk and neighbours.

    Attributes:
        patience: How long to go on against a network that fails.
        workers: How many files to fetch at once.
        lock_timeout_seconds: How long to wait for another process that downloads the same model; None: as long as it
            takes.
    """

    patience: Patience = field(default_factory=Patience)
    workers: int = 8
    lock_timeout_seconds: float | None = None


@dataclass(frozen=True)
class PlannedFile:
    """One file that a download takes.

    Attributes:
        file: Its path, size and hash.
        bytes_here: How many of its bytes are already on the disk.
        is_here: Whether all of it lies in its place.
    """

    file: RemoteFile
    bytes_here: int
    is_here: bool


@dataclass(frozen=True)
class DownloadPlan:
    """What a download will do, decided from the listing and the cache before the first byte.

    Attributes:
        repo_id: The model.
        revision: What was asked for, or None for the default branch.
        commit: The commit that it is now.
        patterns: What was asked to be taken.
        files: What is taken.
        needed: The paths that loading needs, taken or not.
        folder: Where the snapshot lies, or will lie.
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
        """The size of all files taken."""
        return sum(planned.file.size_bytes for planned in self.files)

    @property
    def fetch_bytes(self) -> int:
        """The bytes that are not on the disk yet."""
        return sum(p.file.size_bytes - p.bytes_here for p in _by_blob(self.files))

    @property
    def record(self) -> Record:
        """The lock file that this plan leads to."""
        files = tuple(planned.file for planned in self.files)
        return Record(self.repo_id, self.revision, self.commit, self.patterns, files, self.needed)

    @property
    def is_loadable(self) -> bool:
        """Whether what is taken can be loaded."""
        taken = {planned.file.path for planned in self.files}
        return bool(self.needed) and set(required(self.needed, taken)) <= taken


@dataclass(frozen=True)
class Downloaded(Snapshot):
    """A snapshot, and what it took to get it.

    Attributes:
        fetched_bytes: The bytes that came over the network.
        seconds: How long it took.
        is_loadable: False where patterns left out something that loading needs.
        how: `cached` where nothing had to be fetched, else `fetched`.
    """

    fetched_bytes: int
    seconds: float
    is_loadable: bool
    how: str


def plan_download(
    repo_id: str,
    *,
    revision: str | None = None,
    patterns: Patterns | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> DownloadPlan:
    """What `download` would do: the files with sizes, and what is already there. Writes nothing.

    Raises:
        RemoteError: The Hub says no, or cannot be reached.
        ModelError: There are no weights that llmctl loads.
        UserError: The id or the patterns have to change.
    """
    refuse_if_offline(f"what {repo_id} holds now")
    patience, note = (limits or Limits()).patience, progress.note if progress else None
    listing = fetch_listing(repo_id, revision=revision, patience=patience, note=note)
    return _plan(listing, revision, patterns or Patterns())


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    offline: bool = False,
    limits: Limits | None = None,
) -> Downloaded:
    """Bring what loading `repo_id` needs into the standard cache, and nothing else.

    It goes on where an earlier run stopped. Every file is checked against its listed hash before it takes its place.

    Args:
        repo_id: The model, as the Hub names it.
        revision: A branch, a tag or a commit; None for the default branch.
        include: Take exactly the files that match one of these shell patterns, instead of what loading needs.
        exclude: Leave out the files that match one of these.
        trust_remote_code: Take the repository's Python files as well. Nothing is executed here.
        progress: Who listens.
        offline: Open no socket: only what is cached already.
        limits: How long to go on, how many files at once, how long to wait for another process.

    Raises:
        RemoteError: The Hub says no, cannot be reached, or sends damaged files.
        ModelError: There are no weights that llmctl loads.
        MachineError: The disk is full or not writable, or another process holds the model's lock.
        UserError: The id or the patterns have to change.
    """
    began = time.monotonic()
    check_id(repo_id)
    if offline or settings.is_offline():
        snapshot = _cached_or_raise(repo_id, revision=revision, offline=offline)
        return _downloaded(snapshot, fetched_bytes=0, seconds=time.monotonic() - began, is_loadable=True)
    progress, limits = progress or Silent(), limits or Limits()
    patterns = Patterns(tuple(include), tuple(exclude), trust_remote_code)
    plan = plan_download(repo_id, revision=revision, patterns=patterns, progress=progress, limits=limits)
    return carry_out(plan, progress=progress, limits=limits)


def ensure(
    repo_id: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Snapshot:
    """The snapshot of `repo_id`: from the cache where it is complete there (no network at all), else downloaded.

    Raises:
        OfflineError: It is not complete in the cache and fetching is forbidden; says what is missing.
        LlmctlError: As `download`.
    """
    check_id(repo_id)
    snapshot = find_snapshot(repo_id, revision=revision)
    if snapshot is not None and not (trust_remote_code and _lacks_code(snapshot)):
        return snapshot
    return download(repo_id, revision=revision, offline=offline, progress=progress, trust_remote_code=trust_remote_code)


def carry_out(plan: DownloadPlan, *, progress: Progress, limits: Limits) -> Downloaded:
    """Do what a plan says."""
    began = time.monotonic()
    try:
        if all(planned.is_here for planned in plan.files):
            fetched = 0
            _settle(plan)
        else:
            disk.check_room(plan.fetch_bytes, plan.folder)
            with locked(plan.repo_id, timeout_seconds=limits.lock_timeout_seconds, note=progress.note):
                fetched = _fetch_all(plan, progress, limits)
                _remember(plan)
    except LlmctlError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and disk.explain(
            error, plan.folder, needed_bytes=_look_again(plan).fetch_bytes
        )
        raise full or access.explain(error, repo_id=plan.repo_id, revision=plan.revision) from error
    finally:
        progress.close()
    snapshot = make_snapshot(plan.repo_id, revision=plan.revision, commit=plan.commit, folder=plan.folder)
    seconds = time.monotonic() - began
    return _downloaded(snapshot, fetched_bytes=fetched, seconds=seconds, is_loadable=plan.is_loadable)


def _plan(listing: Listing, revision: str | None, patterns: Patterns) -> DownloadPlan:
    names = [file.path for file in listing.files]
    taken = set(select(listing.repo_id, names, patterns))
    folder = settings.repo_dir(listing.repo_id) / "snapshots" / listing.commit
    return DownloadPlan(
        repo_id=listing.repo_id,
        revision=revision,
        commit=listing.commit,
        patterns=patterns,
        files=tuple(planned_file(listing.repo_id, folder, f) for f in listing.files if f.path in taken),
        needed=needed(names, trust_remote_code=patterns.trust_remote_code),
        folder=folder,
    )


def planned_file(repo_id: str, folder: Path, file: RemoteFile) -> PlannedFile:
    """A file, with what is already there of it."""
    blob = blob_path(repo_id, file)
    if _size(blob) == file.size_bytes:
        return PlannedFile(file, file.size_bytes, is_here=_size(folder / file.path) == file.size_bytes)
    if _size(folder / file.path) == file.size_bytes and not (folder / file.path).is_symlink():
        return PlannedFile(file, file.size_bytes, is_here=True)  # a cache without symlinks holds the file itself
    return PlannedFile(file, min(_size(partial_path(blob)) or 0, file.size_bytes), is_here=False)


def _look_again(plan: DownloadPlan) -> DownloadPlan:
    """The plan with what is on the disk now: another process may have been at work."""
    files = tuple(planned_file(plan.repo_id, plan.folder, planned.file) for planned in plan.files)
    return DownloadPlan(plan.repo_id, plan.revision, plan.commit, plan.patterns, files, plan.needed, plan.folder)


def _fetch_all(plan: DownloadPlan, progress: Progress, limits: Limits) -> int:
    """Fetch and link what is missing, under the lock. Returns the bytes fetched."""
    plan = _look_again(plan)
    absent = [p for p in _by_blob(plan.files) if not p.is_here and not _has_blob(plan, p)]
    for planned in absent:
        blob_path(plan.repo_id, planned.file).parent.mkdir(parents=True, exist_ok=True)
    progress.start([(p.file.path, p.file.size_bytes, p.bytes_here) for p in absent])
    jobs = [_job(plan, planned.file) for planned in absent]
    if jobs:
        Transfer(jobs, progress=progress, patience=limits.patience, workers=limits.workers).run()
    for planned in plan.files:
        _link(plan, planned.file.digest)
    return sum(p.file.size_bytes - p.bytes_here for p in absent)


def _job(plan: DownloadPlan, file: RemoteFile) -> Job:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(plan.repo_id, file.path, revision=plan.commit, endpoint=settings.endpoint())
    return Job(file, url, blob_path(plan.repo_id, file), lambda: _link(plan, file.digest))


def _link(plan: DownloadPlan, digest: str) -> None:
    """Give a blob that is in its place every name that it has in the snapshot."""
    for planned in plan.files:
        if planned.file.digest == digest and _has_blob(plan, planned):
            link(blob_path(plan.repo_id, planned.file), plan.folder, planned.file.path)


def _settle(plan: DownloadPlan) -> None:
    """Where every file is here: write down what is not, and clear what a killed run left. Not worth waiting for.

    A cache that may not be written to, or that another process is at work in, serves as it is.
    """
    record, repo = read_record(plan.repo_id, plan.commit), settings.repo_dir(plan.repo_id)
    is_written = record is not None and set(plan.record.files) <= set(record.files) and record.needed == plan.needed
    if is_written and cached_commit(plan.repo_id, revision=plan.revision) == plan.commit and not leftovers(repo):
        return
    try:
        with locked(plan.repo_id, timeout_seconds=0, note=lambda _: None):
            _remember(plan)
    except MachineError:
        return
    except OSError as error:
        if not disk.is_read_only(error):
            raise


def _remember(plan: DownloadPlan) -> None:
    """Write down what was taken, and clear what killed runs left; for the holder of the lock."""
    _check_shards(plan)
    write_record(plan.record)
    if plan.is_loadable or cached_commit(plan.repo_id, revision=plan.revision) is None:
        write_ref(plan.repo_id, plan.revision or "main", plan.commit)
    for orphan in leftovers(settings.repo_dir(plan.repo_id)):
        orphan.unlink(missing_ok=True)


def _check_shards(plan: DownloadPlan) -> None:
    """Raise where the index names shards that the repository does not have or that lie elsewhere."""
    taken = {planned.file.path for planned in plan.files}
    if WEIGHTS_INDEX not in taken or WEIGHTS_INDEX not in plan.needed:
        return
    shards = shards_of(plan.folder / WEIGHTS_INDEX)
    strange = [name for name in shards if name not in plan.needed]
    if strange or not shards:
        raise ModelError(
            f"{WEIGHTS_INDEX} of {plan.repo_id} names files that the repository lacks: {', '.join(strange[:3])}"
            if strange
            else f"{WEIGHTS_INDEX} of {plan.repo_id} names no shards",
            hint=f"another revision may be whole: {settings.model_page(plan.repo_id)}/commits/main",
        )


def _cached_or_raise(repo_id: str, *, revision: str | None, offline: bool) -> Snapshot:
    snapshot = find_snapshot(repo_id, revision=revision)
    if snapshot is not None:
        return snapshot
    why = "HF_HUB_OFFLINE is set" if settings.is_offline() else "--offline was given"
    found = look_up(repo_id, revision=revision)
    at = f" at {revision}" if revision else ""
    if found.folder is None:
        message = f"{repo_id}{at} is not in the cache {settings.cache_dir()}, and {why}"
    else:
        message = f"{repo_id}{at} is incomplete in the cache, and {why}: missing {', '.join(found.missing)}"
    command = f"llmctl download {repo_id}" + (f" --revision {revision}" if revision else "")
    near = access.near_names(repo_id)
    raise OfflineError(
        message,
        hint=f"with a network and without HF_HUB_OFFLINE and --offline run: {command}"
        + (f" (in the cache there is {', '.join(near)})" if near else ""),
        details={"missing": list(found.missing), "near": near},
    )


def _lacks_code(snapshot: Snapshot) -> bool:
    """Whether the model brings its own code and the snapshot was taken without it."""
    try:
        has_code = b'"auto_map"' in (snapshot.folder / "config.json").read_bytes()
    except OSError:
        return False
    return has_code and not any(name.endswith(".py") for name in snapshot.files)


def blob_path(repo_id: str, file: RemoteFile) -> Path:
    """Where the content of a file lies in the cache."""
    return settings.repo_dir(repo_id) / "blobs" / file.digest


def _has_blob(plan: DownloadPlan, planned: PlannedFile) -> bool:
    return _size(blob_path(plan.repo_id, planned.file)) == planned.file.size_bytes


def _by_blob(files: Sequence[PlannedFile]) -> list[PlannedFile]:
    """One file for each content: names that share it share its blob."""
    return list({planned.file.digest: planned for planned in files}.values())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _downloaded(snapshot: Snapshot, *, fetched_bytes: int, seconds: float, is_loadable: bool) -> Downloaded:
    return Downloaded(
        **{name: getattr(snapshot, name) for name in Snapshot.__dataclass_fields__},
        fetched_bytes=fetched_bytes,
        seconds=seconds,
        is_loadable=is_loadable,
        how="fetched" if fetched_bytes else "cached",
    )
