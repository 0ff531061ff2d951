"""`llmctl doctor`."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import file, number, switch
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.config import Config, Settings
from llmctl.errors import EXIT_NO, EXIT_OK, ConfigError, Problem, UserError
from llmctl.paths import check_output, write_atomically

if TYPE_CHECKING:
    from llmctl.doctor import Check, Findings

app = new_app()
DEFAULT_REPORT = Path("llmctl-report.md")
_STYLES = {"broken": "bad", "warning": "doubtful", "ok": "good", "skipped": "dim"}

FILE = file("--output", "-o", help="File of the report", default_text=str(DEFAULT_REPORT), needs="--report")
REPORT = switch("--report", help="Write a report to paste, without secrets")
GPU_CHECK = switch("--gpu-check", help="Run models on the GPU: results, speed and memory, in at most 8 minutes")
TIME_LIMIT = number("--time-limit", help="Maximum seconds of one import", default=30.0, minimum=1, maximum=600)


@command(
    app,
    MODEL_ARGUMENT,
    REPORT,
    FILE,
    GPU_CHECK,
    TIME_LIMIT,
    "--model",
    "--config",
    "--set",
    "--offline",
    reports_faults=True,
)
def doctor(options: Options) -> None:
    """Find what prevents a model from running here, and the fix.

    The exit code is 1 if something that the configuration needs is broken. Every import is tried in its own process.

    Examples:

      llmctl doctor

      llmctl doctor --config configs/llama3-8b-4bit.yaml

      llmctl doctor Qwen/Qwen3-4B

      llmctl doctor --model Qwen/Qwen3-4B --set load.device_map=cuda --report

      llmctl doctor --gpu-check --report
    """
    if options[GPU_CHECK]:
        from llmctl.cli._gpu_check import check_gpu

        check_gpu(options.output, report=(options[FILE] or DEFAULT_REPORT) if options[REPORT] else None)
        return
    from llmctl.doctor import diagnose, examine
    from llmctl.doctor.diagnose import is_healthy

    output = options.output
    _refuse_file_as_model(options)
    if options[REPORT]:
        check_output(options[FILE] or DEFAULT_REPORT, flag="--report")
    problems: tuple[Problem, ...] = ()
    try:
        settings = options.settings()
    except ConfigError as error:
        settings, problems = Settings(Config()), error.problems
    with output.waiting("examining this machine"):
        findings = examine(
            settings, problems=problems, offline=options[OFFLINE], time_limit_seconds=options[TIME_LIMIT]
        )
    checks = diagnose(findings)
    if options[REPORT]:
        _write_report(output, findings, checks, options[FILE] or DEFAULT_REPORT)
    if output.as_json:
        output.document("llmctl.doctor/1", document(findings, checks))
    else:
        _show(output, checks)
    raise typer.Exit(EXIT_OK if is_healthy(checks) else EXIT_NO)


def _refuse_file_as_model(options: Options) -> None:
    """Raise UserError if the argument is the name of a file for the report."""
    name = options[MODEL_ARGUMENT]
    if name and Path(name).suffix in (".md", ".txt") and not Path(name).is_dir():
        raise UserError(f"{name} is no model", hint=f"the file of a report: llmctl doctor --report --output {name}")


def document(findings: "Findings", checks: "Sequence[Check]") -> dict[str, Any]:
    """Return the document of `--json`."""
    return {
        "healthy": all(check.status != "broken" for check in checks),
        "model": findings.source,
        "checks": [asdict(check) for check in checks],
        "imports": {
            name: {"outcome": trial.outcome, "error": trial.error, "seconds": round(trial.seconds, 2)}
            for name, trial in findings.trials.items()
        },
        "versions": {"python": findings.computer.python, **(findings.machine.packages if findings.machine else {})},
    }


def _write_report(output: Output, findings: "Findings", checks: "Sequence[Check]", path: Path) -> None:
    from llmctl.doctor import report_text
    from llmctl.doctor.privacy import known_tokens

    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_atomically(path, report_text(findings, checks, when=when, secrets=known_tokens()))
    output.note(f"report: {path}")


def _show(output: Output, checks: "Sequence[Check]") -> None:
    """Print problems first, and the other checks in a line for each status, or each of them with --verbose."""
    problems = [check for status in ("broken", "warning") for check in checks if check.status == status]
    others = [check for check in checks if check not in problems]
    shown = [*problems, *(others if output.verbose and not output.quiet else [])]
    width = max((len(check.name) for check in shown), default=0)
    rows, styles = [], []
    for check in shown:
        rows.append((f"{check.status:<7}  {check.name:<{width}}", check.reason))
        styles.append(_STYLES[check.status])
        if check.fix and check in problems:
            rows.append(("", f"fix: {check.fix}"))
            styles.append("")
    output.pairs(rows, styles=styles)
    if not output.verbose and not output.quiet:
        _show_names(output, others)
    broken = [check.name for check in checks if check.status == "broken"]
    warnings = sum(check.status == "warning" for check in checks)
    warnings_text = f"; {warnings} warning{'s' if warnings != 1 else ''}" if warnings else ""
    output.line(
        f"broken: {', '.join(dict.fromkeys(broken))}{warnings_text}" if broken else f"nothing is broken{warnings_text}"
    )


def _show_names(output: Output, checks: "Sequence[Check]") -> None:
    """Print the names of checks in one line for each status."""
    names: dict[str, list[str]] = {}
    for check in checks:
        names.setdefault(check.status, []).append(check.name)
    rows = [(f"{status:<7}", ", ".join(dict.fromkeys(each))) for status, each in names.items()]
    output.pairs(rows, styles=[_STYLES[status] for status in names])
    if rows:
        output.note("--verbose shows each check with its finding")
