"""Benchmarks of tiny models through the real command line."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pexpect
import psutil
import pytest

import llmctl
from conftest import Run
from llmctl.bench import bounds
from llmctl.bench.children import ask
from llmctl.bench.measure import Prompts, measure_cell
from llmctl.bench.task import Cell
from llmctl.errors import MachineError
from llmctl.generation.engine import engine_for_many, engine_for_one
from llmctl.loading.model import LoadedModel
from support.tiny import edit_json

NEW_TOKENS = 5


@pytest.fixture(scope="module")
def side_by_side(tiny_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the command once: two dtypes, each with an attention that this machine supports and one that it does not."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "plain.yaml").write_text("load:\n  attn_implementation: sdpa\n")
    (folder / "flash.yaml").write_text("load:\n  attn_implementation: flash_attention_2\n")
    words = "--config plain.yaml --config flash.yaml --dtype fp32,bf16 --prompt-tokens 6,12 --batch 1,3 --runs 2"
    words += f" --new-tokens {NEW_TOKENS} --plot speed.svg --json"
    done = subprocess.run(
        [sys.executable, "-m", "llmctl", "bench", str(tiny_models("llama")), *words.split()],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "LLMCTL_HOME": str(folder / "home")},
        timeout=240,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), folder


def test_a_failed_configuration_is_reported_with_the_others(side_by_side: Any) -> None:
    code, document, _ = side_by_side
    assert code == 1
    assert document["schema"] == "llmctl.bench/1"
    by_name = {one["name"]: one for one in document["configs"]}
    assert list(by_name) == ["plain fp32", "plain bf16", "flash fp32", "flash bf16"]
    for name in ("flash fp32", "flash bf16"):
        assert by_name[name]["runs"] == []
        assert by_name[name]["summary"] is None
        assert by_name[name]["failure"]["kind"] in ("machine", "user")
        assert "flash_attention_2" in by_name[name]["failure"]["message"]
    assert all(by_name[name]["failure"] is None for name in ("plain fp32", "plain bf16"))


def test_every_run_has_every_cell_and_no_answer_ended_early(side_by_side: Any) -> None:
    for one in side_by_side[1]["configs"][:2]:
        assert len(one["runs"]) == 2
        for run in one["runs"]:
            cells = [(cell["prompt_tokens"], cell["batch"]) for cell in run["cells"]]
            assert cells == [(6, 1), (12, 1), (6, 3), (12, 3)]
            assert [cell["new_tokens"] for cell in run["cells"]] == [NEW_TOKENS * batch for _, batch in cells]
            assert [cell["through"] for cell in run["cells"]] == ["generate", "generate", "engine", "engine"]
            assert run["loaded"]["anonymous_bytes"] <= run["loaded"]["resident_bytes"]
            assert run["loaded"]["resident_bytes"] <= run["ended"]["peak_memory_bytes"]


def test_a_row_is_the_median_with_the_minimum_and_maximum_of_the_runs(side_by_side: Any) -> None:
    for one in side_by_side[1]["configs"][:2]:
        for place, row in enumerate(one["summary"]["cells"]):
            runs = [run["cells"][place] for run in one["runs"]]
            for name, figure in (
                ("first_token_seconds", "first_token_seconds"),
                ("prefill", "prefill_tokens_per_second"),
                ("decode", "decode_tokens_per_second"),
            ):
                values = [cell[figure] for cell in runs]
                expected = {"median": statistics.median(values), "low": min(values), "high": max(values), "count": 2}
                assert row[name] == expected


@pytest.mark.parametrize(
    ("rate", "bound"), [(2e9, 1e11), (5e10, 1e11), (9e11, 9e11)], ids=["a hundred times slower", "slower", "faster"]
)
def test_16_bits_are_at_least_as_fast_as_float32_and_a_slow_product_is_skipped(
    rate: float, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def flops(device: str, dtype: str, size: int) -> float:
        asked.append((dtype, size))
        return rate if dtype == "bfloat16" else 1e11

    monkeypatch.setattr(bounds, "_flops", flops)
    assert bounds.product_flops("cpu", "bfloat16") == bound
    assert sum(2 * size**3 / (rate if dtype == "bfloat16" else 1e11) for dtype, size in asked) < 1.5


def test_bounds_are_measured_in_the_dtypes_that_are_used(side_by_side: Any) -> None:
    document = side_by_side[1]
    bound = document["machine"]["bounds"]["cpu"]
    assert set(bound["flops"]) == {"float32", "bfloat16"}
    assert min(bound["flops"].values()) > 1e8
    assert bound["bandwidth"] > 1e8
    assert bound["threads"] == 1  # as the tests set it
    dtypes = [one["runs"][0]["loaded"]["dtype"] for one in document["configs"][:2]]
    assert dtypes == ["float32", "bfloat16"]
    for config in document["configs"][:2]:
        weights_bytes = sum(config["runs"][0]["loaded"]["device_bytes"].values())
        assert len(config["summary"]["cells"]) == 4
        for row in config["summary"]["cells"]:
            passes_per_second = row["decode"]["median"] / row["batch"]
            share_of_weights = passes_per_second * weights_bytes / bound["bandwidth"]
            # the embedding is not read, the KV cache is: of the same order as the weights in a tiny model
            assert share_of_weights / 4 < row["decode_share"] < 4 * share_of_weights


def test_the_chart_is_an_svg_with_every_configuration_that_ran(side_by_side: Any) -> None:
    root = ElementTree.parse(side_by_side[2] / "speed.svg").getroot()
    assert root.tag.endswith("svg")
    assert "plain bf16" in (side_by_side[2] / "speed.svg").read_text(encoding="utf-8")
    assert [file.name for file in side_by_side[2].glob(".speed*")] == []


def ending(loaded: LoadedModel) -> bool:
    """Return True if an ordinary answer of this model ends before its token limit."""
    return any(
        llmctl.generate(loaded, text, max_new_tokens=20).finish_reason == "stop" for text in ("the", "two", "it")
    )


def test_end_tokens_neither_end_an_answer_nor_occur_in_a_prompt(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy()
    ends = list(range(200, 400))
    edit_json(folder / "generation_config.json", eos_token_id=ends, repetition_penalty=1.3)
    loaded = llmctl.load(folder, load={"dtype": "float32"})
    assert ending(loaded)
    prompts = Prompts(loaded, 1)
    ways = [(Cell(7, 1), "generate"), (Cell(7, 3), "engine"), (Cell(7, 2), "generate, one after the other")]
    for cell, way in ways:
        requests = prompts.requests(cell, 20)
        engine = engine_for_many(loaded) if way == "engine" else engine_for_one(loaded, requests[0])
        assert not {token for request in requests for token in request.prompt.ids} & {0, 1, 2, *ends}
        figures = measure_cell(engine, cell, requests)
        assert figures["new_tokens"] == 20 * cell.batch
        assert 0 < figures["first_token_seconds"] < figures["seconds"]
        assert figures["through"] == way


@pytest.fixture
def screen(tiny_copy: Callable[..., Path], tmp_path: Path) -> "Iterator[pexpect.spawn[str]]":
    """Run `llmctl bench` on a terminal, in the middle of an answer that takes minutes."""
    model = tiny_copy(max_position_embeddings=200_000)
    words = "--prompt-tokens 8 --batch 1 --new-tokens 100000 --runs 1"
    command = ["-m", "llmctl", "bench", str(model), *words.split()]
    screen = pexpect.spawn(
        sys.executable, command, cwd=str(tmp_path), dimensions=(24, 80), encoding="utf-8", timeout=120
    )
    screen.expect("8 x 1, 1 of 1")
    yield screen
    screen.close(force=True)


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=15)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_an_interrupt_leaves_no_process_behind(screen: "pexpect.spawn[str]") -> None:
    children = psutil.Process(screen.pid).children(recursive=True)
    assert children
    screen.sendintr()
    screen.expect(pexpect.EOF)
    screen.close()
    assert screen.exitstatus == 130
    assert gone(children)


def test_an_interrupt_reports_the_completed_runs(tiny_models: Callable[[str], Path], tmp_path: Path) -> None:
    words = "--prompt-tokens 8 --batch 1 --new-tokens 4 --runs 500 --json"
    process = subprocess.Popen(
        [sys.executable, "-m", "llmctl", "bench", str(tiny_models("llama")), *words.split(), "--verbose"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    next(line for line in process.stderr if "run 2: loading" in line)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    document = json.loads(out)
    assert process.returncode == 130
    assert document["interrupted"]
    assert len(document["configs"][0]["runs"]) == 1


def test_a_child_ends_when_its_parent_is_killed(screen: "pexpect.spawn[str]") -> None:
    children = psutil.Process(screen.pid).children(recursive=True)
    assert children
    os.kill(screen.pid, signal.SIGKILL)
    assert gone(children)


def test_the_report_fits_a_terminal_of_80_columns(tiny_models: Callable[[str], Path], tmp_path: Path) -> None:
    command = ["-m", "llmctl", "bench", str(tiny_models("llama")), "--quick", "--quant", "4bit", "--quiet"]
    screen = pexpect.spawn(
        sys.executable,
        [*command, "--no-color"],
        cwd=str(tmp_path),
        dimensions=(60, 80),
        encoding="utf-8",
        timeout=120,
    )
    screen.expect(pexpect.EOF)
    screen.close()
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.before or "")
    table = [line for line in text.splitlines() if "64 x 1" in line]
    assert screen.exitstatus == 0
    assert table[0].split()[:4] == ["4bit", "64", "x", "1"]
    assert sum("█" in line for line in table) == 1
    assert max(len(line) for line in text.splitlines() if str(tiny_models("llama")) not in line) <= 80


def test_a_dead_child_is_reported_with_its_last_output() -> None:
    with pytest.raises(MachineError, match=r"exit code 1: TypeError: .*nonsense"):
        list(ask("run", nonsense=1))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--batch 0", 2, "--batch 0: expected positive whole numbers"),
        ("--prompt-tokens 64;512", 2, "separated by commas"),
        ("--prompt-tokens 5000", 2, "ends at 256 tokens: prompts of 5000"),
        ("--plot speed.pdf", 2, "a .png or an .svg file"),
        ("--plot nowhere/speed.png", 2, "there is no folder"),
        ("--quant 3bit", 2, "must be 8bit, 4bit or none"),
        ("--new-tokens 1", 2, "--new-tokens"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_runs(
    run: Run, tiny_models: Callable[[str], Path], words: str, code: int, said: str
) -> None:
    done = run("bench", str(tiny_models("llama")), *words.split())
    assert done.returncode == code
    assert said in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_chart_without_matplotlib_names_the_command(
    run: Run, tiny_models: Callable[[str], Path], tmp_path: Path
) -> None:
    absent = tmp_path / "absent" / "matplotlib"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(absent.parent), os.environ.get("PYTHONPATH", "")])
    done = run("bench", str(tiny_models("llama")), "--plot", "speed.png", PYTHONPATH=path)
    assert done.returncode == 3
    assert "pip install 'llmctl-hf[plot]'" in done.stderr


def test_if_nothing_can_run_the_error_is_raised(run: Run, tiny_models: Callable[[str], Path]) -> None:
    done = run("bench", str(tiny_models("llama")), "--attn", "flash_attention_2", "--quick", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["kind"] == "machine"
