"""`llmctl doctor --gpu-check`: a line for each step, or with --json a document for each."""

import json
from datetime import UTC, datetime
from pathlib import Path

import typer

from llmctl.cli._render import Output
from llmctl.errors import EXIT_NO, EXIT_OK
from llmctl.paths import check_output, write_atomically


def check_gpu(output: Output, *, report: Path | None) -> None:
    """Check the GPU, and exit with 1 if something is wrong.

    Args:
        report: File of a report to share.

    Raises:
        MachineError: there is no GPU.
    """
    from llmctl.bench.gpu_check import report_text, require_gpu, run_check
    from llmctl.machine.detection import read_machine

    require_gpu(read_machine())
    if report is not None:
        check_output(report, flag="--report")
    documents, good = [], True
    with output.waiting("checking the GPU") as tell:
        for step in run_check():
            document = step.document()
            documents.append(document)
            good = good and step.is_good
            if output.as_json:
                output.line(json.dumps(document, ensure_ascii=False))
            else:
                output.line(f"{step.status:<7}  {step.step:<15}  {step.seconds:4.0f} s  {document.get('reason', '')}")
            tell(f"checking the GPU: after {step.step}")
    if report is not None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(report, report_text(documents, when=when))
        output.note(f"report: {report}")
    raise typer.Exit(EXIT_OK if good else EXIT_NO)
