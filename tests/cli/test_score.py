"""`llmctl score`, and `--logprobs` of `llmctl generate`, through pipes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmctl.cli.main import main

Run = Callable[..., Any]
Tiny = Callable[[str], Path]


@pytest.fixture
def ask(tiny_models: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`llmctl COMMAND … --model TINY` in this process, which has torch already."""

    def command(name: str, *arguments: str) -> SimpleNamespace:
        with Path(os.devnull).open() as silent:
            monkeypatch.setattr("sys.stdin", silent)
            code = main([name, "--model", str(tiny_models("llama")), *arguments])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return command


def test_a_text_from_a_pipe_has_its_tokens_and_its_perplexity(run: Run, tiny_models: Tiny) -> None:
    arguments = ["score", "--model", str(tiny_models("llama")), "--json", "--logprobs", "2"]
    document = json.loads(run(*arguments, stdin="the capital of france\n").stdout)
    assert document["schema"] == "llmctl.score/1"
    [found] = document["texts"]
    assert found["text"] == "the capital of france"
    assert "".join(token["token"] for token in found["tokens"]) == " capital of france"
    assert found["logprob"] == pytest.approx(sum(token["logprob"] for token in found["tokens"]))
    assert all(len(token["top"]) == 2 for token in found["tokens"])
    assert found["perplexity"] > 1


def test_choices_are_shown_as_a_table_the_most_likely_first(ask: Run) -> None:
    done = ask("score", "--prompt", "where?", "--choices", "paris, rome", "--choice", " in italy")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["choice", "share", "sum", "per token", "per byte"]
    assert {row[0] for row in rows[1:]} == {"paris", "rome", " in italy"}
    sums = [float(row[2]) for row in rows[1:]]
    assert sums == sorted(sums, reverse=True)


def test_rows_of_a_file_are_scored_into_another_in_their_order(ask: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    rows = [
        {"id": "a", "text": "the capital"},
        {"prompt": "hi", "completion": "paris"},
        {"prompt": [*messages, {"role": "user", "content": "hi"}], "completion": "rome"},
    ]
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    done = ask("score", "--input", str(source), "--output", str(target), "--no-tokens")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    results = [json.loads(line) for line in target.read_text().splitlines()]
    assert [result["text"] for result in results] == ["the capital", "paris", "rome"]
    assert results[0]["id"] == "a"
    assert results[2]["context_tokens"] > results[1]["context_tokens"] > 1
    assert not any("tokens" in result for result in results)


def test_every_invalid_row_is_reported_and_an_existing_file_is_kept(ask: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    source.write_text('{"text": "a b"}\n{"txt": "a"}\n[1]\n{"prompt": 3, "text": "a"}\n{"text": "a"\n')
    target.write_text("good\n")
    done = ask("score", "--input", str(source), "--output", str(target))
    assert done.returncode == 2
    assert "4 of 5 rows cannot be scored:" in done.stderr
    assert f"{source}:2: text must be a text that is not empty" in done.stderr
    assert f"{source}:3: it is not an object" in done.stderr
    assert f"{source}:4: prompt must be a text, or a list of messages" in done.stderr
    assert f"{source}:5: " in done.stderr
    assert target.read_text() == "good\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a", "--choices", "b,c"], "three different tasks"),
        (["--choices", "b,c"], "choices are ranked after a prompt"),
        (["--text", "a", "--output", "x"], "--output works only with --input"),
        (["--file", "missing.txt"], "--file missing.txt: No such file or directory"),
        ([], "there is no text to score"),
    ],
)
def test_an_invalid_combination_is_reported_before_a_model_is_resolved(
    run: Run, arguments: list[str], message: str
) -> None:
    done = run("score", "--model", "/nowhere", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_windows_that_do_not_fit_are_refused_before_the_model_is_loaded(
    ask: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmctl.loading.loader.load_prepared", lambda _: pytest.fail("it was loaded"))
    done = ask("score", "--text", "a b", "--stride", "256")
    assert done.returncode == 2
    assert "less than the window, 256; it is 256" in done.stderr


def test_generate_reports_log_probabilities_in_json_and_on_stderr(ask: Run) -> None:
    short = ["--prompt", "hello", "-n", "3", "--logprobs", "1"]
    [answer] = json.loads(ask("generate", "--json", *short).stdout)["completions"]
    assert [scored["id"] for scored in answer["logprobs"]] == answer["token_ids"]
    assert answer["logprobs"][0]["top"][0]["id"] == answer["token_ids"][0], "greedy takes the likeliest"
    done = ask("generate", *short)
    lines = done.stderr.splitlines()[-len(answer["token_ids"]) :]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(
        [scored["logprob"] for scored in answer["logprobs"]], abs=1e-3
    )
    assert "%" not in done.stdout
