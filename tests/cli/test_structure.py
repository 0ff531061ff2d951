"""Structured answers on the command line, with the real SmolLM2."""

import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    return file


@pytest.mark.smollm
def test_choices_allow_only_yes_or_no(run: Run, smollm: Path) -> None:
    done = run("generate", "-m", str(smollm), "--quiet", "-p", "Is the sky blue?", "--choices", "yes,no", "-n", "4")
    assert done.stdout in ("yes\n", "no\n")


@pytest.mark.smollm
def test_a_date_by_a_regex(run: Run, smollm: Path) -> None:
    regex = "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    done = run("generate", "-m", str(smollm), "-p", "When did people first walk on the moon?", "--regex", regex)
    assert datetime.date.fromisoformat(done.stdout.strip())
    assert "end of answer" in done.stderr


@pytest.mark.smollm
def test_a_json_schema_gives_valid_json_that_is_parsed_with_json(run: Run, smollm: Path, schema: Path) -> None:
    asked = ["generate", "-m", str(smollm), "-p", "Ada Lovelace was 36. Give her name and age.", "--json-schema"]
    text = run(*asked, str(schema), "--quiet").stdout
    read = subprocess.run([sys.executable, "-m", "json.tool"], input=text, capture_output=True, text=True, check=True)
    assert set(json.loads(read.stdout)) == {"name", "age"}
    [answer] = json.loads(run(*asked, json.dumps(PERSON), "--json").stdout)["completions"]
    assert answer["parsed"] == json.loads(text)
    assert answer["finish_reason"] == "stop"


def test_a_truncated_answer_is_reported_and_not_parsed(run: Run, tiny_models: Run, schema: Path) -> None:
    arguments = ["-m", str(tiny_models("llama")), "-p", "x", "--json-schema", str(schema), "-n", "3", "--json"]
    [answer] = json.loads(run("generate", *arguments).stdout)["completions"]
    assert answer["finish_reason"] == "length"
    assert "parsed" not in answer


def test_every_answer_of_a_conversation_has_the_form(run: Run, tiny_models: Run) -> None:
    schema = '{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}'
    done = run("chat", "-m", str(tiny_models("llama")), "--json-schema", schema, "--json", stdin="Hello\nAgain\n")
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(turns) == 2
    for turn in turns:
        assert turn["parsed"] == json.loads(turn["text"])
        assert len(turn["parsed"]) == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--json-schema", '{"type": "array", "uniqueItems": true}'], "#/uniqueItems: it cannot be enforced"),
        (["--regex", "a(b"], "structure.regex: unclosed group"),
        (["--choices", "a,b", "--regex", "c"], "only one of regex, choices can be set"),
    ],
)
def test_an_unsupported_structure_is_reported_before_a_model_is_resolved(flags: list[str], says: str, run: Run) -> None:
    done = run("generate", "-m", "no/such-model", "-p", "x", *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "no/such-model" not in done.stderr
