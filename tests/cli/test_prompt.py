"""`llmctl prompt` through pipes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]
Tiny = Callable[[str], Path]


def test_text_goes_to_stdout_and_statistics_to_stderr(run: Run, tiny_models: Tiny) -> None:
    done = run("prompt", "--model", str(tiny_models("llama")), "--prompt", "hi", "--system", "be kind")
    assert done.stdout == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\n"
    )
    assert "tokens of 256, through the chat template; beginning-of-sequence tokens: 0" in done.stderr
    assert "an answer ends with <|endoftext|>, <|im_end|>" in done.stderr
    assert "warning" in done.stderr, "256 tokens of context are fewer than 512 new tokens"


def test_json_has_ids_and_tokens_side_by_side(run: Run, tiny_models: Tiny) -> None:
    done = run("prompt", "--model", str(tiny_models("llama")), "--json", stdin="hello\n")
    document = json.loads(done.stdout)
    assert document["schema"] == "llmctl.prompt/1"
    assert len(document["token_ids"]) == len(document["tokens"])
    assert "hello" in document["text"]


def test_tokens_are_listed_one_per_line(run: Run, tiny_models: Tiny) -> None:
    done = run("prompt", "--model", str(tiny_models("llama")), "--raw", "--tokens", "--prompt", "the cat", stdin="")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["id", "token"]
    assert "".join(row[1].strip("'") for row in rows[1:]) == "the cat"


def test_thinking_is_set_by_the_template_or_refused(run: Run, tiny_models: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "thinking.jinja"
    file.write_text("{{ messages[0].content }} {{ enable_thinking }}")
    command = ("prompt", "--model", str(tiny_models("llama")), "--prompt", "hi")
    assert run(*command, "--no-think", "--template", str(file)).stdout == "hi False\n"
    for flag in ("--think", "--no-think"):
        refused = run(*command, flag)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "cannot turn thinking on or off" in refused.stderr
