"""The figures of a benchmark, compared with arithmetic by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.bench import Comparison, Contender, Outcome, Task, summarise
from llmctl.bench.compare import Bound, Run
from llmctl.bench.plot import draw
from llmctl.bench.summary import is_off, ratio
from llmctl.bench.task import Cell, Spread, spread
from llmctl.cli._bench_report import show, spread_text
from llmctl.cli._render import Output
from llmctl.config import Settings, settings_from_mapping
from llmctl.errors import MachineError
from llmctl.loading.prepare import prepare
from llmctl.machine.detection import read_machine
from llmctl.model.info import ModelInfo, read_model_info
from llmctl.plan.speed import Speed
from llmctl.plan.work import decode_bytes, prefill_operations

TASK = Task(prompt_tokens=(10,), batches=(1, 4), new_tokens=4, runs=3)


def info_of(folder: Path) -> ModelInfo:
    return read_model_info(folder, source="tiny")


def comparison_of(folder: Path) -> Comparison:
    """Return a comparison with made-up figures: bandwidth 1 GB/s, 1 GFLOP/s, decode 100, 200, 300 tokens per second."""
    config = settings_from_mapping({"model": {"id": str(folder)}, "load": {"dtype": "float32"}}).config
    machine = read_machine()
    prepared = prepare(Settings(config), machine=machine, context=TASK.context, batch=4)
    contender = Contender("plain", config, prepared)
    memory = {"resident_bytes": 30, "anonymous_bytes": 20, "peak_memory_bytes": 40, "gpu_peak_bytes": {}}
    loaded = {"load_seconds": 1.0, "device_bytes": {"cpu": 1_000_000}, "parameters": prepared.info.parameters}
    loaded |= {"dtype": "float32", "attn_implementation": "sdpa", "quantization": "none", **memory}
    figures = {"first_token_seconds": 0.5, "prefill_tokens_per_second": 20.0, "new_tokens": 4, "through": "generate"}
    runs = tuple(
        Run(
            loaded,
            {cell: {**figures, "decode_tokens_per_second": rate * cell.batch} for cell in TASK.cells},
            {**memory, "cold_first_token_seconds": 0.7},
            others_share=share,
        )
        for rate, share in ((300.0, 0.0), (100.0, 0.0), (200.0, 0.5))
    )
    expected = {Cell(10, 1): Speed(decode=(50.0, 100.0), prefill=(10.0, 30.0), decode_at_end=(40.0, 90.0))}
    good = Outcome(contender, expected, runs)
    bad = Outcome(replace(contender, name="other"), failure=MachineError("no\nmemory  left"))
    return Comparison(TASK, machine, {"cpu": Bound(1e9, {"float32": 1e9}, 2)}, 0.1, (good, bad))


@pytest.fixture
def comparison(tiny_models: Callable[[str], Path]) -> Comparison:
    return comparison_of(tiny_models("llama"))


def test_rates_are_compared_with_the_limits_of_the_device(comparison: Comparison) -> None:
    summary = summarise(comparison, comparison.outcomes[0])
    assert summary is not None
    one, four = summary.cells
    assert one.decode == Spread(200.0, 100.0, 300.0, 3)
    # untied: all but the table of 64 columns is read, and keys and values of 10 + 4 / 2 tokens, 2 layers, 2 heads of 16
    table = 64 * comparison.outcomes[0].contender.prepared.info.text_config["vocab_size"] * 4  # type: ignore[union-attr]
    cache = 12 * 2 * 2 * 2 * 16 * 4
    assert one.decode_share == pytest.approx(200 * (1_000_000 - table + cache) / 1e9)
    # four sequences share one reading of the weights
    assert four.decode_share == pytest.approx(200 * (1_000_000 - table + 4 * cache) / 1e9)
    assert one.planned_decode == (50.0, 100.0)
    assert one.decode_ratio == 2.0
    assert one.prefill_ratio == 1.0
    assert four.planned_decode is None
    assert four.decode_ratio is None


def test_a_prefill_counts_blocks_for_every_token_and_the_head_once(tiny_models: Callable[[str], Path]) -> None:
    info = info_of(tiny_models("llama"))
    vocabulary = info.text_config["vocab_size"] * 64
    blocks = info.parameters - 2 * vocabulary
    attention = 4 * 10 * (2 * 5) * 4 * 16
    counted = sum(prefill_operations(info, parameters=info.parameters, prompt_tokens=10))
    assert counted == 2 * blocks * 10 + 2 * vocabulary + attention


def test_a_tied_table_is_read_as_the_head(tiny_models: Callable[[str], Path]) -> None:
    info = info_of(tiny_models("qwen3"))
    with_cache = decode_bytes(info, context=10, weights_bytes=5000, dtype="float32")
    assert with_cache == 5000 + 10 * 2 * 2 * 2 * 16 * 4


def test_a_mixture_of_experts_is_compared_with_the_bandwidth_only_for_one_sequence(
    tiny_models: Callable[[str], Path],
) -> None:
    info = info_of(tiny_models("mixtral"))
    one, two = (decode_bytes(info, context=5, batch=batch, weights_bytes=10**6, dtype="float32") for batch in (1, 2))
    assert one is not None
    assert one < 10**6
    assert two is None


def test_a_ratio_is_one_inside_the_range_and_relative_to_the_nearest_end_outside() -> None:
    assert ratio(Spread(5, 5, 5, 1), (4, 6)) == 1
    assert ratio(Spread(3, 3, 3, 1), (4, 6)) == 0.75
    assert ratio(Spread(9, 9, 9, 1), (4, 6)) == 1.5
    assert ratio(None, (4, 6)) is None
    assert [is_off(value) for value in (None, 1, 1.29, 0.78, 1.31, 0.76)] == [False] * 4 + [True] * 2


def test_one_measurement_is_shown_without_a_spread() -> None:
    assert spread_text(spread([31.24])) == "31.2"
    assert spread_text(spread([30.0, 4000.0, 31.0])) == "31 (30-4,000)"
    assert spread_text(spread([None])) == "?"


def test_the_report_mentions_failures_wrong_estimates_and_a_busy_machine(
    comparison: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    show(Output(), comparison)
    lines = capsys.readouterr().out.splitlines()
    assert "  other           failed: no memory left" in lines
    assert "other\tfailed\t\t\t\t\t" in lines
    assert "  plan is off  plain, 10 x 1: decode expected at 50-100, measured 200" in lines
    assert not [line for line in lines if "prefill expected" in line]
    assert [line for line in lines if "up to 50%" in line and "1 of 3" in line]
    row = next(line for line in lines if line.startswith("plain\t10 x 1"))
    assert row.split("\t")[2:6] == ["0.5", "20 (20-20)", row.split("\t")[4], "200 (100-300)"]
    assert row.split("\t")[-1] == "x2"


def test_a_chart_is_a_png_and_replaces_an_old_one(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "speed.png"
    file.write_bytes(b"old")
    draw(comparison, file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert file.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [left.name for left in tmp_path.iterdir()] == ["speed.png"]


def test_a_chart_that_cannot_be_written_is_a_machine_error(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "speed.png").mkdir()
    with pytest.raises(MachineError, match="cannot be written"):
        draw(comparison, tmp_path / "speed.png")
