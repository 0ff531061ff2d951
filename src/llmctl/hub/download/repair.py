"""Downloads of an exact set of files: those of a lock file, or those that a check found damaged."""

from llmctl.errors import UserError
from llmctl.hub import settings
from llmctl.hub.cache.lockfile import Record, read_record
from llmctl.hub.cache.verify import Verification
from llmctl.hub.download.plan import DownloadPlan, Limits, blob_path, planned_files
from llmctl.hub.download.progress import Progress
from llmctl.hub.download.run import Downloaded, carry_out
from llmctl.hub.http import refuse_if_offline
from llmctl.hub.listing import RemoteFile
from llmctl.hub.selection import Patterns, needed


def plan_locked(record: Record) -> DownloadPlan:
    """Return the plan to download exactly the files of a lock file. This needs no request to the Hub."""
    folder = settings.repo_dir(record.repo_id) / "snapshots" / record.commit
    return DownloadPlan(
        repo_id=record.repo_id,
        revision=record.commit,
        commit=record.commit,
        patterns=record.patterns,
        files=planned_files(record.repo_id, folder, record.files),
        needed=record.needed,
        folder=folder,
    )


def repair(verification: Verification, *, progress: Progress, limits: Limits | None = None) -> Downloaded:
    """Download the files again that a check found damaged or missing.

    Raises:
        OfflineError: downloading is forbidden.
        UserError: a file is damaged, and its right size is not known.
        RemoteError: the Hub refuses, or cannot be reached. The damaged files are gone then and count as missing.
    """
    refuse_if_offline(f"repairing {verification.repo_id}")
    for checked in verification.bad:
        if checked.file.size_bytes < 0:
            raise UserError(
                f"{checked.file.path} of {verification.repo_id} is {checked.state}, and no lock file has its hash",
                hint=f"remove it (llmctl models rm {verification.repo_id}) and download it again",
            )
        blob_path(verification.repo_id, checked.file).unlink(missing_ok=True)
        name = verification.folder / checked.file.path
        if not name.is_symlink():  # a cache without links has the file itself
            name.unlink(missing_ok=True)
    record = read_record(verification.repo_id, verification.commit) or _as_record(verification)
    return carry_out(plan_locked(record), progress=progress, limits=limits or Limits())


def _as_record(verification: Verification) -> Record:
    """Return a lock file for a model that another program downloaded, from the checked files."""
    files: tuple[RemoteFile, ...] = tuple(checked.file for checked in verification.files)
    wanted = needed([file.path for file in files])
    return Record(verification.repo_id, verification.revision, verification.commit, Patterns(), files, wanted)
