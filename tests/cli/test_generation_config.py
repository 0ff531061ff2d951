"""Commands with a generation_config.json that transformers itself would refuse or misread."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import forkserver
from support.tiny import edit_json

Run = Callable[..., Any]
# transformers refuses to load a model with these, generates three answers, or needs code from the Hub
HOSTILE: dict[str, Any] = {
    "do_sample": True, "temperature": "0.7", "top_p": 0.9, "stop_strings": ["zz"], "eos_token_id": ["3", 99999],
    "penalty_alpha": 0.6, "max_length": 4096, "num_return_sequences": 3, "cache_implementation": "holographic",
    "max_new_tokens": 0, "\x1b[31m": 1,
}  # fmt: skip


@pytest.fixture
def model(tiny_copy: Callable[..., Path]) -> Path:
    folder = tiny_copy()
    edit_json(folder / "generation_config.json", **HOSTILE)
    return folder


def test_every_command_answers_and_names_what_it_left_out(run: Run, model: Path, tmp_path: Path) -> None:
    short = ["--model", str(model), "-n", "4"]
    (tmp_path / "in.txt").write_text("the capital\n")
    for command, stdin in (
        (["generate", *short, "--dtype", "fp32", "--prompt", "the capital"], ""),
        (["generate", *short, "--dtype", "bf16", "--prompt", "the capital"], ""),
        (["generate", *short, "--input", str(tmp_path / "in.txt")], ""),
        (["chat", *short], "the capital\n"),
    ):
        done = run(*command, stdin=stdin)
        assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr
        note = "settings of the model that are not used: eos_token_id, penalty_alpha, num_return_sequences"
        assert note in done.stderr, done.stderr
        assert "\x1b" not in done.stderr + done.stdout


def test_verbose_shows_each_value_with_its_origin_and_each_one_left_out_with_the_reason(run: Run, model: Path) -> None:
    arguments = [
        "--model",
        str(model),
        "-n",
        "4",
        "-t",
        "0.9",
        "--set",
        "generation.top_k=7",
        "--prompt",
        "the capital",
    ]
    said = run("generate", "-v", *arguments, LLMCTL_SEED="7").stderr.splitlines()
    assert said.index("temperature=0.9: --temperature")
    assert said.index("top_k=7: --set")
    assert said.index("top_p=0.9: the model's generation_config.json")
    assert said.index("max_new_tokens=4: --max-new-tokens")
    assert said.index("seed=7: LLMCTL_SEED")
    assert [
        line for line in said if line.startswith("max_length=4096: in the model's generation_config.json, left out")
    ]
    document = json.loads(run("generate", "--json", *arguments).stdout)
    assert document["generation"]["settings"]["top_p"] == {"value": 0.9, "from": "the model's generation_config.json"}
    assert {one["name"] for one in document["generation"]["left_out"]} >= {"penalty_alpha", "max_length"}


def test_load_shows_the_same_and_the_end_tokens(run: Run, model: Path) -> None:
    shown = run("load", "--model", str(model)).stdout
    assert "0.7 (the model's generation_config.json, written as '0.7')" in shown
    assert "3 '!'" in shown
    decided = json.loads(run("load", "--model", str(model), "--json").stdout)["decided"]
    assert decided["generation"]["settings"]["temperature"]["value"] == 0.7
    assert 3 in decided["eos_token_ids"]
    assert 99999 not in decided["eos_token_ids"]


def test_the_plain_script_does_the_same_with_such_a_file(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(model), "--dtype", "fp32", "--seed", "7", "--set", "generation.max_new_tokens=6"]
    script = tmp_path / "script.py"
    script.write_text(run("load", *arguments, "--show-code", "--prompt", "the capital").stdout)
    plain = forkserver.run(program=(str(script),))
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == run("generate", *arguments, "--prompt", "the capital").stdout


def test_a_replay_repeats_the_models_stop_strings(run: Run, tiny_copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_copy()
    arguments = ["generate", "--model", str(folder), "-n", "9", "--prompt", "the capital", "--json"]
    text = json.loads(run(*arguments).stdout)["completions"][0]["text"]
    edit_json(folder / "generation_config.json", stop_strings=[text[3:5]], suppress_tokens=[5])
    recorded = run(*arguments).stdout
    assert json.loads(recorded)["completions"][0]["finish_reason"] == "stop_string"
    (tmp_path / "run.json").write_text(recorded)
    done = run("replay", str(tmp_path / "run.json"))
    assert done.returncode == 0, done.stderr


def test_a_damaged_file_is_left_out(run: Run, tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy()
    (folder / "generation_config.json").write_text("{'temperature': 0.7")
    done = run("generate", "--model", str(folder), "-n", "4", "--prompt", "the capital")
    assert done.returncode == 0
    assert "settings of the model that are not used: generation_config.json" in done.stderr
