"""`llmctl download`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.options import Command, new_app
from llmctl.cli.render import Output, bytes_text
from llmctl.errors import UserError

if TYPE_CHECKING:
    from llmctl.hub.download import Downloaded, DownloadPlan

app = new_app()

LARGE_BYTES = 100_000_000_000  # beyond this a person on a terminal is asked first


@app.command(cls=Command)
def download(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="The model as the Hub shows it: org/name.", show_default=False)],
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
    """
    from llmctl.cli.bar import DownloadBar
    from llmctl.cli.stopping import resumable
    from llmctl.hub import download as hub
    from llmctl.hub.http import refuse_if_offline
    from llmctl.hub.selection import Patterns

    output: Output = ctx.obj
    patterns = Patterns(tuple(include or ()), tuple(exclude or ()), trust_remote_code)
    bar = DownloadBar(output)
    with resumable(output):
        if offline and not dry_run:
            done = hub.download(model, revision=revision, offline=True)
        else:
            refuse_if_offline("--dry-run", offline=offline)
            plan = hub.plan_download(model, revision=revision, patterns=patterns, progress=bar)
            if dry_run:
                _show_plan(output, plan)
                return
            _confirm(plan, yes=yes)
            done = hub.carry_out(plan, progress=bar, limits=hub.Limits())
    _finish(output, done)


def _finish(output: Output, done: "Downloaded") -> None:
    from llmctl.state import remember_model

    if done.is_loadable:
        remember_model(done.repo_id, revision=done.revision, how="download")
    if output.as_json:
        output.document("llmctl.download/1", _as_json(done))
        return
    output.line(str(done.folder))
    speed = f" in {done.seconds:.1f} s" if done.fetched_bytes else ", all of it was here"
    output.note(
        f"{done.repo_id} at commit {done.commit}: {len(done.files)} files, {bytes_text(done.size_bytes)}{speed}"
    )
    if done.is_loadable:
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
    rows = [(p.file.path, bytes_text(p.file.size_bytes), _here(p.bytes_here, p.file.size_bytes)) for p in plan.files]
    output.table(("file", "size", "here"), rows)
    output.note(
        f"{plan.repo_id} at commit {plan.commit}: {bytes_text(plan.size_bytes)}, "
        f"of which {bytes_text(plan.fetch_bytes)} would be fetched; {bytes_text(free)} are free"
    )


def _here(bytes_here: int, size_bytes: int) -> str:
    if bytes_here == size_bytes:
        return "yes"
    return bytes_text(bytes_here) if bytes_here else "no"


def _confirm(plan: "DownloadPlan", *, yes: bool) -> None:
    """Ask a person before what is merely large. What does not fit is refused later, whatever is answered."""
    if yes or plan.fetch_bytes <= LARGE_BYTES or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(f"Fetch {bytes_text(plan.fetch_bytes)}?", err=True):
        raise UserError("nothing was fetched", hint="--dry-run shows the files; --yes does not ask")
