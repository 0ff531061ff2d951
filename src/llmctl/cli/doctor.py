"""`llmctl doctor`."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._options import ConfigOption, ModelOption, OfflineOption, SetOption, settings_asked
from llmctl.cli._render import Output
from llmctl.config import Config, Settings
from llmctl.errors import EXIT_NO, EXIT_OK, ConfigError, MachineError, Problem, UserError

if TYPE_CHECKING:
    from llmctl.doctor import Check, Findings

app = new_app()
DEFAULT_REPORT = Path("llmctl-report.md")


@app.command(cls=Command)
def doctor(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where --report writes. Default: llmctl-report.md.", show_default=False),
    ] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    report: Annotated[bool, typer.Option("--report", help="Write a file to paste, without secrets.")] = False,
    offline: OfflineOption = False,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=1, max=600, help="Seconds that one import may take.")
    ] = 30.0,
) -> None:
    """Find what is in the way of running a model here, and the command that mends it.

    Exit code 1 where something that the configuration needs is broken. Every import is tried in a process of its own.

    Examples:

      llmctl doctor

      llmctl doctor --config configs/llama3-8b-4bit.yaml

      llmctl doctor --model Qwen/Qwen3-4B --set load.device_map=cuda --report
    """
    from llmctl.doctor import diagnose, examine
    from llmctl.doctor.diagnose import is_healthy

    output: Output = ctx.obj
    if file is not None and not report:
        raise UserError(f"{file}: a file is for --report", hint=f"llmctl doctor --report {file}")
    problems: tuple[Problem, ...] = ()
    try:
        settings = settings_asked(ctx)
    except ConfigError as error:
        settings, problems = Settings(Config()), error.problems
    with output.waiting("looking at this machine"):
        found = examine(settings, problems=problems, offline=offline, time_limit_seconds=time_limit)
    checks = diagnose(found)
    if report:
        _write(output, found, checks, file or DEFAULT_REPORT)
    if output.as_json:
        output.document("llmctl.doctor/1", document(found, checks))
    else:
        _show(output, checks)
    raise typer.Exit(EXIT_OK if is_healthy(checks) else EXIT_NO)


def document(found: "Findings", checks: "Sequence[Check]") -> dict[str, Any]:
    """What `--json` says."""
    return {
        "healthy": all(check.status != "broken" for check in checks),
        "model": found.source,
        "checks": [asdict(check) for check in checks],
        "imports": {
            name: {"outcome": trial.outcome, "error": trial.error, "seconds": round(trial.seconds, 2)}
            for name, trial in found.trials.items()
        },
        "versions": {"python": found.computer.python, **(found.machine.packages if found.machine else {})},
    }


def _write(output: Output, found: "Findings", checks: "Sequence[Check]", file: Path) -> None:
    from llmctl.doctor import report_text
    from llmctl.doctor.privacy import known_tokens
    from llmctl.paths import write_atomically

    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = report_text(found, checks, when=when, secrets=known_tokens())
    try:
        write_atomically(file, text)
    except OSError as error:
        raise MachineError(
            f"the report cannot be written to {file}: {error.strerror}", hint="llmctl doctor --report /tmp/report.md"
        ) from error
    output.note(f"report: {file}")


def _show(output: Output, checks: "Sequence[Check]") -> None:
    shown = [check for check in checks if not output.quiet or check.status in ("broken", "warning")]
    width = max((len(check.name) for check in shown), default=0)
    rows = []
    for check in shown:
        rows.append((f"{check.status:<7}  {check.name:<{width}}", check.reason))
        if check.fix and check.status in ("broken", "warning"):
            rows.append(("", f"fix: {check.fix}"))
    output.pairs(rows)
    broken = [check.name for check in checks if check.status == "broken"]
    warnings = sum(check.status == "warning" for check in checks)
    more = f"; {warnings} warning{'s' if warnings != 1 else ''}" if warnings else ""
    output.line(f"broken: {', '.join(dict.fromkeys(broken))}{more}" if broken else f"nothing is broken{more}")
