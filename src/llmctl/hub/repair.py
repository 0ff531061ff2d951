"""Fetching an exact set again: what a lock file names, or what a check found damaged."""

from llmctl.errors import UserError
from llmctl.hub import settings
from llmctl.hub.download import Downloaded, DownloadPlan, Limits, blob_path, carry_out, planned_file
from llmctl.hub.http import refuse_if_offline
from llmctl.hub.listing import RemoteFile
from llmctl.hub.lockfile import Record, read_record
from llmctl.hub.progress import Progress
from llmctl.hub.selection import Patterns, needed
from llmctl.hub.verify import Verification


def plan_locked(record: Record) -> DownloadPlan:
    """What it takes to have exactly the files of a lock file. Asks nobody: the lock file says it all."""
    folder = settings.repo_dir(record.repo_id) / "snapshots" / record.commit
    return DownloadPlan(
        repo_id=record.repo_id,
        revision=record.commit,
        commit=record.commit,
        patterns=record.patterns,
        files=tuple(planned_file(record.repo_id, folder, file) for file in record.files),
        needed=record.needed,
        folder=folder,
    )


def repair(found: Verification, *, progress: Progress, limits: Limits | None = None) -> Downloaded:
    """Fetch again what a check found damaged or missing.

    Raises:
        OfflineError: Fetching is forbidden.
        UserError: A file is damaged, and nothing here says how long it should be.
        RemoteError: The Hub says no, or cannot be reached. What was damaged is gone then, and named as missing.
    """
    refuse_if_offline(f"repairing {found.repo_id}")
    for checked in found.bad:
        if checked.file.size_bytes < 0:
            raise UserError(
                f"{checked.file.path} of {found.repo_id} is {checked.state}, and no lock file says what it should be",
                hint=f"remove it (llmctl models rm {found.repo_id}) and download it again",
            )
        blob_path(found.repo_id, checked.file).unlink(missing_ok=True)
        name = found.folder / checked.file.path
        if not name.is_symlink():  # a cache without links holds the file itself
            name.unlink(missing_ok=True)
    record = read_record(found.repo_id, found.commit) or _as_record(found)
    return carry_out(plan_locked(record), progress=progress, limits=limits or Limits())


def _as_record(found: Verification) -> Record:
    """The lock file of a model that another program fetched, from its kept listing."""
    files: tuple[RemoteFile, ...] = tuple(checked.file for checked in found.files)
    wanted = needed([file.path for file in files])
    return Record(found.repo_id, found.revision, found.commit, Patterns(), files, wanted)
