"""lm-eval's local-completions on a task from a folder: its log-likelihoods are those of `llmctl score`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SERVER_PYTHON = os.environ["SERVER_PYTHON"]
TASKS = Path(__file__).parent / "tasks"
ROWS = [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def samples(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return lm-eval's logged samples by task."""
    home = tmp_path_factory.mktemp("lm-eval")
    arguments = f"model=smollm2,base_url={address}/v1/completions,num_concurrent=4,max_retries=1,max_length=1024"
    environment = {**os.environ, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments),
            *("--tasks", "capitals,capitals_said", "--include_path", str(TASKS), "--batch_size", "3"),
            *("--output_path", str(home / "out"), "--log_samples"),
        ],
        cwd=TASKS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(ran.stdout[-3000:])
    assert ran.returncode == 0, ran.stderr[-4000:]
    samples = {}
    for task in ("capitals", "capitals_said"):
        [file] = (home / "out").rglob(f"samples_{task}_20*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[task] = sorted(rows, key=lambda row: row["doc_id"])
    return samples


def scored(row: dict[str, Any]) -> list[float]:
    """Return the scores of `llmctl score` for each choice, in the order of the row."""
    choices = [part for choice in row["choices"] for part in ("--choice", f" {choice}")]
    options = ("--json", "--dtype", "fp32", "--offline")
    ran = subprocess.run(
        [SERVER_PYTHON, "-m", "llmctl", "score", "--raw", "--prompt", row["question"], *choices, *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    ranked = {entry["text"]: entry["logprob"] for entry in json.loads(ran.stdout)["choices"]}
    return [ranked[f" {choice}"] for choice in row["choices"]]


def test_its_log_likelihoods_are_those_of_llmctl_score(samples: dict[str, list[dict[str, Any]]]) -> None:
    assert len(samples["capitals"]) == len(ROWS)
    for row, sample in zip(ROWS, samples["capitals"], strict=True):
        assert sample["doc"] == row
        theirs = [float(answer[0][0]) for answer in sample["resps"]]
        print(row["question"], *(f"{choice} {value:.4f}" for choice, value in zip(row["choices"], theirs, strict=True)))
        assert theirs == pytest.approx(scored(row), abs=2e-3)


def test_it_knows_some_capitals(samples: dict[str, list[dict[str, Any]]]) -> None:
    assert sum(sample["acc"] for sample in samples["capitals"]) >= 3


def test_it_generates_until_a_stop_string(samples: dict[str, list[dict[str, Any]]]) -> None:
    texts = [sample["resps"][0][0] for sample in samples["capitals_said"]]
    print(texts)
    assert all(text and "\n" not in text and "." not in text for text in texts)
    assert "Paris" in texts[0]
