"""`llmctl download`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import Flag, file, integer, switch, text, texts
from llmctl.cli._interrupts import resumable
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.config.hub_address import id_and_revision
from llmctl.errors import EXIT_NO, MachineError, UserError
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.hub.cache.verify import Verification
    from llmctl.hub.download.plan import DownloadPlan, Limits
    from llmctl.hub.download.run import Downloaded
    from llmctl.hub.selection import Patterns

app = new_app()

LARGE_BYTES = 100_000_000_000  # beyond this a user on a terminal is asked first

MODEL = text("MODEL", metavar="MODEL", help="Hub id of the model: org/name")
REVISION = text("--revision", help="Branch, tag or commit", default_text="the main branch")
INCLUDE = texts(
    "--include", metavar="PATTERN", help="Download exactly the files that match", excludes=("--locked", "--verify")
)
EXCLUDE = texts("--exclude", metavar="PATTERN", help="Skip the files that match", excludes=("--locked", "--verify"))
TRUST = switch(
    "--trust-remote-code", help="Download the repository's Python files as well", excludes=("--locked", "--verify")
)
DRY_RUN = switch("--dry-run", help="Show what would be downloaded and stop", excludes=("--verify",))
VERIFY = switch("--verify", help="Hash the cached files without the network; download damaged ones again")
LOCKED = file("--locked", help="Lock file; download exactly its files")
LOCK_TIMEOUT: Flag[float | None] = Flag(
    names=("--lock-timeout",),
    help="Seconds to wait for another process",
    annotation=float | None,
    default=None,
    metavar="NUMBER",
    default_text="no limit",
    minimum=0,
)
RETRIES = integer("--retries", help="Consecutive attempts without progress before giving up", default=5, minimum=0)
OFFLINE = switch("--offline", help="Use only the cache, never the network")
YES = switch("--yes", "-y", help="Do not ask before a very large download")


@command(
    app, MODEL, REVISION, INCLUDE, EXCLUDE, TRUST, DRY_RUN, VERIFY, LOCKED, LOCK_TIMEOUT, RETRIES, OFFLINE, YES
)  # fmt: skip
def download(options: Options) -> None:
    """Download the files that loading a model needs, and nothing else.

    These are the safetensors weights, the configuration, the tokenizer and the chat template: never pickles, GGUF,
    ONNX or duplicates. An interrupted download continues when the same command runs again.

    Examples:

      llmctl download Qwen/Qwen3-4B

      llmctl download Qwen/Qwen3-4B --dry-run

      llmctl download Qwen/Qwen3-4B --include 'tokenizer*'

      llmctl download Qwen/Qwen3-4B --verify
    """
    from llmctl.hub import settings
    from llmctl.hub.download.plan import Limits
    from llmctl.hub.http import Patience, bound_other_calls
    from llmctl.hub.selection import Patterns

    bound_other_calls()
    name, revision = _resolve_name(options[MODEL], options[REVISION], options[LOCKED])
    job = _Job(
        output=options.output,
        model=name,
        revision=revision,
        patterns=Patterns(tuple(options[INCLUDE]), tuple(options[EXCLUDE]), options[TRUST]),
        limits=Limits(patience=Patience(attempts=options[RETRIES] + 1), lock_timeout_seconds=options[LOCK_TIMEOUT]),
    )
    offline, dry_run = options[OFFLINE], options[DRY_RUN]
    with resumable(options.output):
        if options[VERIFY]:
            job.verify(offline=offline)
        elif (offline or settings.is_offline()) and not dry_run:
            job.find()
        else:
            job.fetch(options[LOCKED], dry_run=dry_run, offline=offline, yes=options[YES])


def _resolve_name(model: str | None, revision: str | None, locked: Path | None) -> tuple[str, str | None]:
    """Return the model and the revision: the arguments, or those of the lock file."""
    from llmctl.hub.cache.lockfile import read_file

    if locked is not None:
        record = read_file(locked)
        if model not in (None, record.repo_id) or revision not in (None, record.commit):
            locked_model = f"{record.repo_id} at commit {record.commit}"
            raise UserError(
                f"{locked} locks {locked_model}, not the model named", hint=f"llmctl download --locked {locked}"
            )
        return record.repo_id, record.commit
    if model is None:
        raise UserError("no model was named", hint="llmctl download org/name, as in: llmctl download Qwen/Qwen3-4B")
    return id_and_revision(model, revision)


@dataclass(frozen=True)
class _Job:
    """The subject of one run."""

    output: Output
    model: str
    revision: str | None
    patterns: "Patterns"
    limits: "Limits"

    def find(self) -> None:
        """Do `--offline`: report what the cache has."""
        from llmctl.hub.download.run import download as fetch

        _finish(self.output, fetch(self.model, revision=self.revision, offline=True))

    def fetch(self, locked: Path | None, *, dry_run: bool, offline: bool, yes: bool) -> None:
        """Plan the download; show it, or ask and carry it out."""
        from llmctl.cli._progress import DownloadProgress
        from llmctl.hub.cache.disk import check_room
        from llmctl.hub.cache.lockfile import read_file
        from llmctl.hub.download.plan import plan_download
        from llmctl.hub.download.repair import plan_locked
        from llmctl.hub.download.run import carry_out
        from llmctl.hub.http import refuse_if_offline

        progress = DownloadProgress(self.output)
        refuse_if_offline("--dry-run" if dry_run else "downloading", offline=offline)
        if locked is not None:
            plan = plan_locked(read_file(locked))
        else:
            plan = plan_download(
                self.model, revision=self.revision, patterns=self.patterns, progress=progress, limits=self.limits
            )
        if dry_run:
            _show_plan(self.output, plan)
            return
        check_room(plan.fetch_bytes, plan.folder)  # before any question
        _confirm_large(plan, yes=yes)
        _finish(self.output, carry_out(plan, progress=progress, limits=self.limits))

    def verify(self, *, offline: bool) -> None:
        """Do `--verify`: hash, report damage, and repair it unless the network is forbidden."""
        from llmctl.cli._progress import DownloadProgress
        from llmctl.hub import settings
        from llmctl.hub.cache.verify import verify
        from llmctl.hub.download.repair import repair

        verification = verify(self.model, revision=self.revision)
        for checked in verification.bad:
            self.output.warn(f"{checked.file.path} is {checked.state}")
        if verification.unchecked:
            names = ", ".join(verification.unchecked[:3])
            more = len(verification.unchecked) - 3
            self.output.warn(f"the hashes of {names}{f' and {more} more' if more > 0 else ''} are not known")
        is_repaired = bool(verification.bad) and not offline and not settings.is_offline()
        if is_repaired:
            repair(verification, progress=DownloadProgress(self.output), limits=self.limits)
        _show_verification(self.output, verification, is_repaired=is_repaired)
        if verification.bad and not is_repaired:
            self.output.note(f"to repair it with a network: llmctl download {self.model} --verify")
            raise typer.Exit(EXIT_NO)


def _show_verification(output: Output, verification: "Verification", *, is_repaired: bool) -> None:
    repo_id, commit, damaged = verification.repo_id, verification.commit, len(verification.bad)
    if output.as_json:
        files = [{"path": c.file.path, "state": c.state, c.file.algorithm: c.file.digest} for c in verification.files]
        body = {"repo_id": repo_id, "commit": commit, "hashes_from": verification.source, "files": files}
        output.document(
            "llmctl.verify/1",
            {**body, "damaged": damaged, "unchecked": list(verification.unchecked), "is_repaired": is_repaired},
        )
        return
    state = f"{damaged} damaged or missing" if damaged else "all intact"
    output.line(f"{repo_id}: {len(verification.files)} files, {state}" + (", repaired" if is_repaired else ""))
    output.note(f"commit {commit}; the hashes are from the {verification.source}")


def _finish(output: Output, downloaded: "Downloaded") -> None:
    from llmctl.config.last_model import remember_model

    is_remembered = False
    if downloaded.is_loadable and not downloaded.is_adapter:
        try:
            remember_model(downloaded.repo_id, revision=downloaded.revision, how="download")
            is_remembered = True
        except MachineError as error:  # the model is here all the same
            output.warn(error.message)
    if output.as_json:
        output.document("llmctl.download/1", _as_json(downloaded))
        return
    output.line(str(downloaded.folder))
    speed = f" in {downloaded.seconds:.1f} s" if downloaded.fetched_bytes else ", nothing to fetch"
    size = f"{len(downloaded.files)} files, {format_bytes(downloaded.size_bytes)}"
    output.note(f"{downloaded.repo_id} at commit {downloaded.commit}: {size}{speed}")
    if downloaded.is_adapter:
        output.note(f"an adapter; next: llmctl generate --adapter {downloaded.repo_id} --prompt 'Hello'")
    elif downloaded.is_loadable:
        model = "" if is_remembered else f" --model {downloaded.repo_id}"
        output.note(f"next: llmctl generate{model} --prompt 'Hello'")
    else:
        output.note(f"loading needs more files: llmctl download {downloaded.repo_id}")


def _as_json(downloaded: "Downloaded") -> dict[str, object]:
    return {
        "repo_id": downloaded.repo_id,
        "revision": downloaded.revision,
        "commit": downloaded.commit,
        "folder": str(downloaded.folder),
        "files": list(downloaded.files),
        "size_bytes": downloaded.size_bytes,
        "fetched_bytes": downloaded.fetched_bytes,
        "seconds": round(downloaded.seconds, 3),
        "is_loadable": downloaded.is_loadable,
    }


def _show_plan(output: Output, plan: "DownloadPlan") -> None:
    from llmctl.hub.cache.disk import free_bytes

    free = free_bytes(plan.folder)
    if output.as_json:
        files = [{"path": p.file.path, "size_bytes": p.file.size_bytes, "bytes_here": p.bytes_here} for p in plan.files]
        figures = {"size_bytes": plan.size_bytes, "fetch_bytes": plan.fetch_bytes, "free_bytes": free}
        body = {"repo_id": plan.repo_id, "revision": plan.revision, "commit": plan.commit}
        output.document("llmctl.download-plan/1", {**body, "files": files, **figures, "folder": str(plan.folder)})
        return
    rows = [(p.file.path, format_bytes(p.file.size_bytes), _here(p.bytes_here, p.file.size_bytes)) for p in plan.files]
    output.table(("file", "size", "here"), rows)
    output.note(
        f"{plan.repo_id} at commit {plan.commit}: {format_bytes(plan.size_bytes)}, "
        f"of which {format_bytes(plan.fetch_bytes)} would be fetched; {format_bytes(free)} are free"
    )


def _here(bytes_here: int, size_bytes: int) -> str:
    if bytes_here == size_bytes:
        return "yes"
    return format_bytes(bytes_here) if bytes_here else "no"


def _confirm_large(plan: "DownloadPlan", *, yes: bool) -> None:
    """Ask before a large download. A download that does not fit is refused without a question."""
    if yes or plan.fetch_bytes <= LARGE_BYTES or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(f"Fetch {format_bytes(plan.fetch_bytes)}?", err=True):
        raise UserError("nothing was fetched", hint="--dry-run shows the files; --yes does not ask")
