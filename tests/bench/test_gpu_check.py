"""The check of a GPU: all of it with tiny models on the CPU, and steps that go wrong in every way."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.bench.gpu_check import Report, report_text, require_gpu
from llmctl.bench.gpu_check.checkpoints import SMALL, SMALL_SHAPE, write_small
from llmctl.bench.gpu_check.reference import Reference, compared, completions, logprob_differences
from llmctl.bench.gpu_check.run import run_groups
from llmctl.bench.gpu_check.steps import Step, all_steps, chosen_groups
from llmctl.bench.measure import Prompts
from llmctl.bench.task import Cell
from llmctl.errors import MachineError
from llmctl.generation.engine import Engine, EngineCapacity
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request
from support.machines import H100, LAPTOP, MAC

ROOT = Path(__file__).parent.parent.parent
TESTS = ROOT / "tests"


def documents(text: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["schema"] for line in lines} == {"llmctl.gpu_check/1"}
    return {line["step"]: line for line in lines}


def test_every_step_runs_with_tiny_models_on_the_cpu(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path / "somebody"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    found = documents(done.stdout)
    assert list(found) == [*(step.name for step in all_steps()), "summary"]
    wrong = {name: one for name, one in found.items() if one["status"] not in ("ok", "skipped")}
    assert wrong == {}
    assert done.returncode == 0, done.stderr
    assert {name for name, one in found.items() if one["status"] == "skipped"} <= {"server"}
    assert "somebody" not in done.stdout
    assert list(tmp_path.glob("llmctl*")) == [], "the checkpoints are gone"

    for model in ("llama", "gemma2", "gpt_oss"):
        for check in ("against generate", "prompts in chunks", "prefix hits", "independence of the batch", "structure"):
            assert found[model]["results"][check]["ok"]
    assert found["llama"]["results"]["log-probabilities"]["largest_difference"] < 0.01, "float32 on both sides"
    modes = {"transformers", "without graphs", "with graphs", "as one answer", "static cache"}
    assert modes <= found["single stream"]["results"].keys()
    assert found["many sequences"]["results"]["3 sequences"]["new_tokens"] == 18
    assert found["load"]["results"]["weights"]["planned_bytes"] > 0
    shrunk = found["out of memory"]["results"]["engine"]
    assert (shrunk["same_answers"], shrunk["of"]) == (4, 4)
    assert shrunk["tokens_at_the_end"] < shrunk["planned_tokens"]
    assert found["quantised"]["results"]["4 bits"]["again"]["from_cache"]
    assert found["spill"]["results"]["bytes"].keys() == {"cuda:0", "cpu"}
    if found["server"]["status"] == "ok":
        assert found["server"]["results"]["answers"]["complete"] == 8


@pytest.fixture
def in_children(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Report]]:
    """Run steps of tests/support/gpu_check_steps.py in real child processes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))

    def run(*names: str, seconds: float = 60, budget: int = 20) -> dict[str, Report]:
        steps = [Step(name, f"support.gpu_check_steps:{name}", budget) for name in names]
        reports = run_groups([steps], seconds=seconds, folder="/nowhere", tiny=True)
        return {report.step: report for report in reports}

    return run


def test_a_step_that_raises_or_crashes_is_reported_and_the_next_one_runs_in_a_new_process(
    in_children: Callable[..., dict[str, Report]],
) -> None:
    found = in_children("skips", "raises", "crashes", "wrong", "good")
    assert [report.status for report in found.values()] == ["skipped", "error", "died", "failed", "ok", "failed"]
    assert found["skips"].reason == "a package is missing"
    assert found["raises"].reason == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert "in raises" in "\n".join(found["raises"].traceback)
    assert "SIGABRT" in found["crashes"].reason
    assert found["wrong"].reason == "wrong: sum"
    assert found["good"].reason == "as it should be"
    assert [found[name].results for name in ("raises", "crashes")] == [{"before": 1}] * 2, "what was measured is kept"
    assert found["wrong"].results["process"] != found["good"].results["process"]
    assert found["summary"].reason == "went wrong: raises, crashes, wrong"


def test_a_step_that_hangs_is_ended_at_its_budget(in_children: Callable[..., dict[str, Report]]) -> None:
    found = in_children("hangs", "good", budget=2)
    assert (found["hangs"].status, found["hangs"].results) == ("timeout", {"before": 1})
    assert found["hangs"].seconds < 10
    assert found["good"].status == "ok"


def scripted(now: list[float], seconds: float) -> Callable[..., Iterator[dict[str, Any]]]:
    """Return a stand-in for child processes, in which every step takes `seconds`."""

    def ask(_: str, *, steps: list[dict[str, Any]], **__: Any) -> Iterator[dict[str, Any]]:
        for step in steps:
            yield {"begun": step["name"]}
            now[0] += seconds
            yield {"ended": {"status": "ok"}}

    return ask


def test_no_step_begins_after_the_deadline() -> None:
    now = [0.0]
    groups = [[Step(name, "", 60)] for name in "abcd"]
    reports = list(run_groups(groups, seconds=100, ask=scripted(now, 49), clock=lambda: now[0]))
    assert [(report.step, report.status) for report in reports] == [
        ("a", "ok"), ("b", "ok"), ("c", "skipped"), ("d", "skipped"), ("summary", "ok"),
    ]  # fmt: skip
    assert reports[2].reason == "no time was left"


def test_steps_are_chosen_by_name_with_the_one_that_makes_their_models() -> None:
    chosen = chosen_groups(("load", "single stream"), one_process=False)
    assert [[step.name for step in group] for group in chosen] == [["checkpoints"], ["load", "single stream"]]
    assert chosen_groups((), one_process=True) == (tuple(all_steps()),)


def test_the_budgets_are_whole_seconds_within_the_total() -> None:
    """The expected times are far below the budgets; no single step may use up the eight minutes."""
    assert all(1 <= step.seconds <= 120 for step in all_steps())


def test_documents_and_the_report_have_no_secrets_and_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmn")
    home = str(Path.home())
    report = Report(
        "load",
        "error",
        1.26,
        f"OSError: {home}/models/x is gone",
        {"url": "https://user:pass@example.org/x"},
        (f'File "{home}/.venv/lib/x.py"', "token hf_abcdefghijklmn"),
    )
    document = report.document()
    text = json.dumps(document)
    assert home not in text
    assert "hf_abc" not in text
    assert "pass@" not in text
    assert document["reason"] == "OSError: ~/models/x is gone"
    assert document["seconds"] == 1.3
    markdown = report_text([document], when="2026-01-01")
    assert "error    load" in markdown
    assert json.dumps(document, ensure_ascii=False) in markdown


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ({}, True),
        ({"sliding_window": 15}, False),
        ({"attn_logit_softcapping": None}, False),
        ({"final_logit_softcapping": None}, False),
    ],
    ids=["same", "window", "softcap", "softcap of logits"],
)
def test_a_wrong_window_and_a_missing_softcap_are_found(change: dict[str, Any], ok: bool, tmp_path: Path) -> None:
    folder = tmp_path / "gemma2"
    model_type, special = SMALL["gemma2"]
    layers = {"num_hidden_layers": 2, "layer_types": special["layer_types"][:2]}
    write_small(folder, model_type, {**SMALL_SHAPE, **special, **layers})
    loaded = llmctl.load(folder, load={"dtype": "float32"})
    requests = [replace(one, logprobs=0) for one in Prompts(loaded, 1).requests(Cell(40, 3), 12)]
    answers = completions(Engine(loaded, EngineCapacity(8, 512, 1024)), requests)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**content, **change}), encoding="utf-8")
    assert logprob_differences(Reference(folder), answers)["ok"] is ok


def test_tokens_that_differ_are_wrong_unless_they_are_a_near_tie(tiny_models: Callable[[str], Path]) -> None:
    reference = Reference(tiny_models("llama"))
    prompt = tuple(range(5, 30))
    request = Request(Prompt(prompt), {}, seed=0, budget=1, stop_strings=())
    row = reference.logits([*prompt, 0], start=len(prompt))[0]
    best, second, *_, worst = row.argsort(descending=True).tolist()
    assert compared(reference, [request], [(best,)], [(best,)]) == {
        "same": 1, "of": 1, "largest_difference": 0.0, "ok": True,
    }  # fmt: skip
    wrong = compared(reference, [request], [(best,)], [(worst,)])
    assert (wrong["same"], wrong["ok"]) == (0, False)
    assert wrong["largest_difference"] > compared(reference, [request], [(best,)], [(second,)])["largest_difference"]


def test_a_machine_without_a_gpu_is_told_so() -> None:
    require_gpu(H100)
    for machine in (LAPTOP, MAC):
        with pytest.raises(MachineError, match="there is no NVIDIA or AMD GPU here"):
            require_gpu(machine)


def test_doctor_says_in_one_line_that_there_is_no_gpu(run: Any) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    done = run("doctor", "--gpu-check")
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "there is no NVIDIA or AMD GPU here" in done.stderr
