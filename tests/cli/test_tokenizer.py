"""Notes about a model's tokenizer reach the user, and a tokenizer of another model is refused."""

import json
from collections.abc import Callable
from pathlib import Path

from conftest import Run
from support.tiny import edit_json


def test_a_note_says_that_the_named_class_is_not_used(tiny_copy: Callable[..., Path], run: Run) -> None:
    folder = tiny_copy()
    arguments = ("--model", str(folder), "--prompt", "once upon", "-n", "4")
    before = run("generate", *arguments)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizer", add_bos_token=True)
    after = run("generate", *arguments)
    assert (after.returncode, after.stdout) == (0, before.stdout)
    assert [line for line in after.stderr.splitlines() if "GemmaTokenizer" in line], after.stderr
    assert [line for line in after.stderr.splitlines() if "add_bos_token" in line], after.stderr
    assert "GemmaTokenizer" in run("prompt", *arguments[:4]).stderr
    assert run("generate", *arguments, "--quiet").stderr == ""
    loaded = json.loads(run("load", "--model", str(folder), "--json").stdout)
    notes = {decision["key"]: decision for decision in loaded["decided"]["decisions"] if decision["is_note"]}
    assert notes["tokenizer"]["value"] == "tokenizer.json"
    assert notes["add_bos_token"]["value"] is False


def test_a_tokenizer_with_ids_beyond_the_embedding_exits_with_2(tiny_copy: Callable[..., Path], run: Run) -> None:
    folder = tiny_copy()
    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    edit_json(folder / "config.json", vocab_size=size - 1)
    result = run("generate", "--model", str(folder), "--prompt", "once", "--json")
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["token_id"], error["embedding_rows"]) == ("model", size - 1, size - 1)
