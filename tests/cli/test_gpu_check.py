"""`llmctl doctor --gpu-check`: what it prints and writes, with a scripted check."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from llmctl.bench import gpu_check
from llmctl.bench.gpu_check import Report
from llmctl.cli._gpu_check import check_gpu
from llmctl.cli._render import Output

REPORTS = [
    Report("probe", "ok", 3.2, "NVIDIA H100"),
    Report("load", "timeout", 60.0, "it was ended after 60 s", {"load_seconds": 12.5}),
    Report("summary", "failed", 63.2, "went wrong: load"),
]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_check(**_: Any) -> Iterator[Report]:
        yield from REPORTS

    monkeypatch.setattr(gpu_check, "run_check", run_check)
    monkeypatch.setattr(gpu_check, "require_gpu", lambda _: None)


def test_each_step_is_a_line_and_the_report_has_every_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught:
        check_gpu(Output(), report=tmp_path / "report.md")
    assert caught.value.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "probe"], ["timeout", "load"], ["failed", "summary"]]
    assert lines[1].endswith("60 s  it was ended after 60 s")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    documents = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert documents == [report.document() for report in REPORTS]


def test_with_json_each_step_is_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        check_gpu(Output(as_json=True), report=None)
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert documents == [report.document() for report in REPORTS]


def test_a_check_without_a_fault_ends_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "run_check", lambda: iter([REPORTS[0]]))
    with pytest.raises(typer.Exit) as caught:
        check_gpu(Output(), report=None)
    assert caught.value.exit_code == 0
