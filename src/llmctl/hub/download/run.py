"""Downloads of a model into the cache: the plan is carried out under the model's lock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmctl.errors import LlmctlError, MachineError, ModelError, OfflineError
from llmctl.hub import error_translation, settings
from llmctl.hub.cache import disk
from llmctl.hub.cache.lockfile import read_record, write_record
from llmctl.hub.cache.paths import give_names, leftovers, near_names, share, write_ref
from llmctl.hub.cache.snapshot import Snapshot, cached_commit, find_snapshot, look_up, make_snapshot, shards_of
from llmctl.hub.cache.verify import check
from llmctl.hub.cache.writer_lock import lock_path, locked
from llmctl.hub.download.plan import (
    DownloadPlan,
    Limits,
    PlannedFile,
    blob_path,
    by_blob,
    has_blob,
    plan_download,
    refreshed,
)
from llmctl.hub.download.progress import Progress, Silent
from llmctl.hub.download.transfer import Job, Transfer
from llmctl.hub.listing import RemoteFile, check_id
from llmctl.hub.selection import WEIGHTS_INDEX, Patterns
from llmctl.paths import check_writable


@dataclass(frozen=True)
class Downloaded(Snapshot):
    """A snapshot and the cost of its download.

    Attributes:
        fetched_bytes: Bytes that came over the network.
        seconds: Duration.
        is_loadable: False if patterns excluded a file that is needed for loading.
        how: `cached` if nothing had to be fetched, else `fetched`.
    """

    fetched_bytes: int
    seconds: float
    is_loadable: bool
    how: str


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
    """Download only the files that are needed to load `repo_id` into the standard cache.

    It resumes where an earlier run stopped. Every file is checked against its listed hash before it is put in place.

    Args:
        revision: A branch, a tag or a commit; None for the default branch.
        include: Shell patterns of the files to take instead of what loading needs.
        exclude: Shell patterns of files to leave out.
        trust_remote_code: Take the repository's Python files as well. Nothing is executed here.
        offline: Open no socket: use only what is cached already.

    Raises:
        RemoteError: the Hub refuses, cannot be reached, or sends damaged files.
        ModelError: there are no weights that llmctl loads.
        MachineError: the disk is full or not writable, or another process holds the model's lock.
        UserError: the id or the patterns have to change.
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
    """Return the snapshot of `repo_id`: from the cache if it is complete there (without any network), else downloaded.

    Raises:
        OfflineError: it is not complete in the cache and downloading is forbidden; the message names what is missing.
        LlmctlError: as `download`.
    """
    check_id(repo_id)
    snapshot = find_snapshot(repo_id, revision=revision)
    if snapshot is not None and not (trust_remote_code and _lacks_code(snapshot)):
        return snapshot
    return download(repo_id, revision=revision, offline=offline, progress=progress, trust_remote_code=trust_remote_code)


def carry_out(plan: DownloadPlan, *, progress: Progress, limits: Limits) -> Downloaded:
    """Carry out a plan."""
    began = time.monotonic()
    try:
        if all(planned.is_here for planned in plan.files):
            fetched = 0
            _finish_cached(plan)
        else:
            disk.check_room(plan.fetch_bytes, plan.folder)
            check_writable(*_places(plan))
            with locked(plan.repo_id, timeout_seconds=limits.lock_timeout_seconds, note=progress.note):
                fetched = _fetch_all(plan, progress, limits)
                _write_records(plan)
    except LlmctlError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and disk.explain(error, plan.folder, needed_bytes=refreshed(plan).fetch_bytes)
        raise full or error_translation.translate(error, repo_id=plan.repo_id, revision=plan.revision) from error
    finally:
        progress.close()
    snapshot = make_snapshot(plan.repo_id, revision=plan.revision, commit=plan.commit, folder=plan.folder)
    seconds = time.monotonic() - began
    return _downloaded(snapshot, fetched_bytes=fetched, seconds=seconds, is_loadable=plan.is_loadable)


def _places(plan: DownloadPlan) -> tuple[Path, ...]:
    """Return every folder that a download writes to: one that refuses should do so before the first byte arrives."""
    repo = settings.repo_dir(plan.repo_id)
    snapshot = [(plan.folder / planned.file.path).parent for planned in plan.files]
    return (lock_path(plan.repo_id).parent, repo / "blobs", repo / "refs", repo / "llmctl", *snapshot)


def _fetch_all(plan: DownloadPlan, progress: Progress, limits: Limits) -> int:
    """Fetch and link missing files, under the lock, and return the bytes fetched."""
    plan = refreshed(plan)
    plan = replace(plan, files=tuple(map(_with_sound_twin, plan.files)))
    absent = [p for p in by_blob(plan.files) if not p.is_here and p.twin is None and not has_blob(plan, p)]
    for planned in absent:
        blob_path(plan.repo_id, planned.file).parent.mkdir(parents=True, exist_ok=True)
    progress.start([(p.file.path, p.file.size_bytes, p.bytes_here) for p in absent])
    jobs = [_job(plan, planned.file) for planned in absent]
    if jobs:
        Transfer(jobs, progress=progress, patience=limits.patience, workers=limits.workers).run()
    for planned in plan.files:
        _link(plan, planned.file.digest)
    return sum(p.file.size_bytes - p.bytes_here for p in absent)


def _with_sound_twin(planned: PlannedFile) -> PlannedFile:
    """Return the plan for a file without a twin that is damaged."""
    if planned.is_here or planned.twin is None or check(planned.twin, planned.file) == "ok":
        return planned
    return replace(planned, twin=None, bytes_here=0)


def _job(plan: DownloadPlan, file: RemoteFile) -> Job:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(plan.repo_id, file.path, revision=plan.commit, endpoint=settings.endpoint())
    return Job(file, url, blob_path(plan.repo_id, file), lambda: _link(plan, file.digest))


def _link(plan: DownloadPlan, digest: str) -> None:
    """Give complete content all its names in the snapshot."""
    same = [planned for planned in plan.files if planned.file.digest == digest]
    if has_blob(plan, same[0]):
        paths = [planned.file.path for planned in same]
        give_names(blob_path(plan.repo_id, same[0].file), plan.folder, paths)
        return
    for planned in same:
        if planned.twin is not None and not planned.is_here:
            share(planned.twin, plan.folder / planned.file.path)


def _finish_cached(plan: DownloadPlan) -> None:
    """Complete the records of a snapshot whose files are all here, and remove what a killed run left.

    A cache that is read-only, or in use by another process, is left as it is.
    """
    record, repo = read_record(plan.repo_id, plan.commit), settings.repo_dir(plan.repo_id)
    is_written = record is not None and set(plan.record.files) <= set(record.files) and record.needed == plan.needed
    if is_written and cached_commit(plan.repo_id, revision=plan.revision) == plan.commit and not leftovers(repo):
        return
    try:
        with locked(plan.repo_id, timeout_seconds=0, note=lambda _: None):
            _write_records(plan)
    except MachineError:
        return
    except OSError as error:
        if not disk.is_read_only(error):
            raise


def _write_records(plan: DownloadPlan) -> None:
    """Write the lock file and the ref, and remove what killed runs left. The caller holds the lock."""
    _check_shards(plan)
    write_record(plan.record)
    if plan.is_loadable or cached_commit(plan.repo_id, revision=plan.revision) is None:
        write_ref(plan.repo_id, plan.revision or "main", plan.commit)
    for orphan in leftovers(settings.repo_dir(plan.repo_id)):
        orphan.unlink(missing_ok=True)


def _check_shards(plan: DownloadPlan) -> None:
    """Raise if the index names shards that the repository does not have or that are elsewhere."""
    taken = {planned.file.path for planned in plan.files}
    if WEIGHTS_INDEX not in taken or WEIGHTS_INDEX not in plan.needed:
        return
    shards = shards_of(plan.folder / WEIGHTS_INDEX)
    unknown = [name for name in shards if name not in plan.needed]
    if unknown or not shards:
        raise ModelError(
            f"{WEIGHTS_INDEX} of {plan.repo_id} names files that the repository lacks: {', '.join(unknown[:3])}"
            if unknown
            else f"{WEIGHTS_INDEX} of {plan.repo_id} names no shards",
            hint=f"another revision may be complete: {settings.model_page(plan.repo_id)}/commits/main",
        )


def _cached_or_raise(repo_id: str, *, revision: str | None, offline: bool) -> Snapshot:
    snapshot = find_snapshot(repo_id, revision=revision)
    if snapshot is not None:
        return snapshot
    why = "HF_HUB_OFFLINE is set" if settings.is_offline() else "--offline was given"
    entry = look_up(repo_id, revision=revision)
    at = f" at {revision}" if revision else ""
    if entry.folder is None:
        message = f"{repo_id}{at} is not in the cache {settings.cache_dir()}, and {why}"
    else:
        message = f"{repo_id}{at} is incomplete in the cache, and {why}; missing: {', '.join(entry.missing)}"
    command = f"llmctl download {repo_id}" + (f" --revision {revision}" if revision else "")
    near = near_names(repo_id)
    raise OfflineError(
        message,
        hint=f"with a network and without HF_HUB_OFFLINE and --offline run: {command}"
        + (f" (in the cache there is {', '.join(near)})" if near else ""),
        details={"missing": list(entry.missing), "near": near},
    )


def _lacks_code(snapshot: Snapshot) -> bool:
    """Return True if the model has Python code and the snapshot was downloaded without it."""
    try:
        has_code = b'"auto_map"' in (snapshot.folder / "config.json").read_bytes()
    except OSError:
        return False
    return has_code and not any(name.endswith(".py") for name in snapshot.files)


def _downloaded(snapshot: Snapshot, *, fetched_bytes: int, seconds: float, is_loadable: bool) -> Downloaded:
    return Downloaded(
        **{name: getattr(snapshot, name) for name in Snapshot.__dataclass_fields__},
        fetched_bytes=fetched_bytes,
        seconds=seconds,
        is_loadable=is_loadable,
        how="fetched" if fetched_bytes else "cached",
    )
