"""`llmctl download`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._interrupts import resumable
from llmctl.cli._render import Output
from llmctl.errors import EXIT_NO, UserError
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.hub.download import Downloaded, DownloadPlan, Limits
    from llmctl.hub.selection import Patterns
    from llmctl.hub.verify import Verification

app = new_app()

LARGE_BYTES = 100_000_000_000  # beyond this a person on a terminal is asked first


@app.command(cls=Command)
def download(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="The model as the Hub shows it: org/name.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, a tag or a commit.", show_default=False)
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="Take exactly the files that match (repeatable).", show_default=False),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Leave out the files that match (repeatable).", show_default=False),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Take the repository's Python files as well.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched, and stop.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash what is cached, without the network; fetch again what is damaged.")
    ] = False,
    locked: Annotated[
        Path | None,
        typer.Option("--locked", help="Fetch exactly the files of this lock file.", show_default=False),
    ] = None,
    lock_timeout: Annotated[
        float | None,
        typer.Option("--lock-timeout", help="Seconds to wait for another process.", min=0, show_default="no end"),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", help="Attempts in a row that may bring nothing before it gives up.", min=0)
    ] = 5,
    offline: Annotated[bool, typer.Option("--offline", help="Open no socket: only look at the cache.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a very large download.")] = False,
) -> None:
    """Download what loading a model needs, and nothing else.

    That is the safetensors weights, the configuration, the tokenizer and the chat template: never pickles, GGUF, ONNX
    or second copies. What is interrupted goes on where it stopped when the same command is run again.

    Examples:

      llmctl download Qwen/Qwen3-4B

      llmctl download Qwen/Qwen3-4B --dry-run

      llmctl download Qwen/Qwen3-4B --include 'tokenizer*'

      llmctl download Qwen/Qwen3-4B --verify
    """
    from llmctl.hub import settings
    from llmctl.hub.download import Limits
    from llmctl.hub.http import Patience, bound_other_calls
    from llmctl.hub.selection import Patterns

    bound_other_calls()
    output: Output = ctx.obj
    name, revision = _named(model, revision, locked)
    patterns = Patterns(tuple(include or ()), tuple(exclude or ()), trust_remote_code)
    limits = Limits(patience=Patience(attempts=retries + 1), lock_timeout_seconds=lock_timeout)
    job = _Job(output, name, revision, patterns, limits)
    with resumable(output):
        if verify:
            job.verify(offline=offline)
        elif (offline or settings.is_offline()) and not dry_run:
            job.find()
        else:
            job.fetch(locked, dry_run=dry_run, offline=offline, yes=yes)


def _named(model: str | None, revision: str | None, locked: Path | None) -> tuple[str, str | None]:
    """The model and the revision that are meant: the arguments, or those of the lock file."""
    from llmctl.hub.lockfile import read_file

    if locked is not None:
        record = read_file(locked)
        if model not in (None, record.repo_id) or revision not in (None, record.commit):
            meant = f"{record.repo_id} at commit {record.commit}"
            raise UserError(f"{locked} is about {meant}, not what was named", hint=f"llmctl download --locked {locked}")
        return record.repo_id, record.commit
    if model is None:
        raise UserError("no model was named", hint="llmctl download org/name, as in: llmctl download Qwen/Qwen3-4B")
    return model, revision


@dataclass(frozen=True)
class _Job:
    """What a run of the command is about."""

    output: Output
    model: str
    revision: str | None
    patterns: "Patterns"
    limits: "Limits"

    def find(self) -> None:
        """`--offline`: what the cache has."""
        from llmctl.hub.download import download as fetch

        _finish(self.output, fetch(self.model, revision=self.revision, offline=True))

    def fetch(self, locked: Path | None, *, dry_run: bool, offline: bool, yes: bool) -> None:
        """Plan, show or ask, fetch."""
        from llmctl.cli._download_bar import DownloadBar
        from llmctl.hub.disk import check_room
        from llmctl.hub.download import carry_out, plan_download
        from llmctl.hub.http import refuse_if_offline
        from llmctl.hub.lockfile import read_file
        from llmctl.hub.repair import plan_locked

        bar = DownloadBar(self.output)
        refuse_if_offline("--dry-run" if dry_run else "downloading", offline=offline)
        if locked is not None:
            plan = plan_locked(read_file(locked))
        else:
            plan = plan_download(
                self.model, revision=self.revision, patterns=self.patterns, progress=bar, limits=self.limits
            )
        if dry_run:
            _show_plan(self.output, plan)
            return
        check_room(plan.fetch_bytes, plan.folder)  # no question about what cannot be
        _confirm(plan, yes=yes)
        _finish(self.output, carry_out(plan, progress=bar, limits=self.limits))

    def verify(self, *, offline: bool) -> None:
        """`--verify`: hash; say what is wrong; repair it unless the network is forbidden."""
        from llmctl.cli._download_bar import DownloadBar
        from llmctl.hub import settings
        from llmctl.hub.repair import repair
        from llmctl.hub.verify import verify

        found = verify(self.model, revision=self.revision)
        for checked in found.bad:
            self.output.warn(f"{checked.file.path} is {checked.state}")
        is_repaired = bool(found.bad) and not offline and not settings.is_offline()
        if is_repaired:
            repair(found, progress=DownloadBar(self.output), limits=self.limits)
        _show_verification(self.output, found, is_repaired=is_repaired)
        if found.bad and not is_repaired:
            self.output.note(f"to repair it, with a network: llmctl download {self.model} --verify")
            raise typer.Exit(EXIT_NO)


def _show_verification(output: Output, found: "Verification", *, is_repaired: bool) -> None:
    if output.as_json:
        files = [{"path": c.file.path, "state": c.state, c.file.algorithm: c.file.digest} for c in found.files]
        body = {"repo_id": found.repo_id, "commit": found.commit, "hashes_from": found.source, "files": files}
        output.document("llmctl.verify/1", {**body, "damaged": len(found.bad), "is_repaired": is_repaired})
        return
    state = "all as listed" if not found.bad else f"{len(found.bad)} damaged or missing"
    output.line(f"{found.repo_id}: {len(found.files)} files, {state}" + (", repaired" if is_repaired else ""))
    output.note(f"commit {found.commit}; the hashes are from the {found.source}")


def _finish(output: Output, done: "Downloaded") -> None:
    from llmctl.config.last_model import remember_model

    if done.is_loadable and not done.is_adapter:
        remember_model(done.repo_id, revision=done.revision, how="download")
    if output.as_json:
        output.document("llmctl.download/1", _as_json(done))
        return
    output.line(str(done.folder))
    speed = f" in {done.seconds:.1f} s" if done.fetched_bytes else ", all of it was here"
    output.note(
        f"{done.repo_id} at commit {done.commit}: {len(done.files)} files, {format_bytes(done.size_bytes)}{speed}"
    )
    if done.is_adapter:
        output.note(f"an adapter; next: llmctl generate --adapter {done.repo_id} --prompt 'Hello'")
    elif done.is_loadable:
        output.note("next: llmctl generate --prompt 'Hello'")
    else:
        output.note(f"this is not all that loading needs; for that: llmctl download {done.repo_id}")


def _as_json(done: "Downloaded") -> dict[str, object]:
    return {
        "repo_id": done.repo_id,
        "revision": done.revision,
        "commit": done.commit,
        "folder": str(done.folder),
        "files": list(done.files),
        "size_bytes": done.size_bytes,
        "fetched_bytes": done.fetched_bytes,
        "seconds": round(done.seconds, 3),
        "is_loadable": done.is_loadable,
    }


def _show_plan(output: Output, plan: "DownloadPlan") -> None:
    from llmctl.hub.disk import free_bytes

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


def _confirm(plan: "DownloadPlan", *, yes: bool) -> None:
    """Ask a person before what is merely large. What does not fit is refused later, whatever is answered."""
    if yes or plan.fetch_bytes <= LARGE_BYTES or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(f"Fetch {format_bytes(plan.fetch_bytes)}?", err=True):
        raise UserError("nothing was fetched", hint="--dry-run shows the files; --yes does not ask")
