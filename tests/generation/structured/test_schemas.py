"""JSON schemas by the hundred: every finished answer of a random model is valid under its schema.

`LLMCTL_SCHEMAS=300` runs all schemas and prints the counts; the default is forty. A schema is its number.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import llmctl
from llmctl.errors import UserError
from llmctl.generation.overrides import with_generation
from support.schemas import REFUSED, make_schema

SCHEMAS = int(os.environ.get("LLMCTL_SCHEMAS", "40"))
NUMBERS = range(0, 300, max(1, 300 // SCHEMAS))
SAMPLES = 3 if SCHEMAS >= 300 else 1
# Of a random model's answers within 180 tokens; the others are cut inside a list or a text that may go on.
LEAST_SHARE_FINISHED = 0.6


def refused_keyword(schema: Any) -> str | None:
    return next((name for name, inner in REFUSED.items() if schema.get("properties", {}).get("b") == inner), None)


def outcomes(loaded: llmctl.LoadedModel, number: int) -> Iterator[str]:
    """Answer schema `number` and check each answer."""
    schema = make_schema(number)
    jsonschema.Draft202012Validator.check_schema(schema)
    constrained = with_generation(loaded, {}, structure={"json_schema": schema})
    keyword = refused_keyword(schema)
    if keyword is not None:
        with pytest.raises(UserError) as refusal:
            llmctl.generate(constrained, "x")
        assert f"#/properties/b/{keyword}" in refusal.value.message, f"schema {number}"
        yield f"refused: {keyword}"
        return
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for seed in range(SAMPLES):
        done = llmctl.generate(constrained, "x", seed=seed, max_new_tokens=180)
        if done.finish_reason == "stop":
            assert [str(error) for error in validator.iter_errors(json.loads(done.text))] == [], f"schema {number}"
        yield {"stop": "finished", "length": "cut"}[done.finish_reason]


def test_answers_that_finish_are_valid_and_most_finish(tiny_models: Callable[[str], Path]) -> None:
    sampled = {"temperature": 1.5, "top_k": 0}
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation=sampled)
    counts = Counter(outcome for number in NUMBERS for outcome in outcomes(loaded, number))
    print(f"\n{len(NUMBERS)} schemas, {SAMPLES} samples each: {dict(sorted(counts.items()))}")  # noqa: T201
    assert counts["finished"] >= LEAST_SHARE_FINISHED * (counts["finished"] + counts["cut"])
    assert len([outcome for outcome in counts if outcome.startswith("refused")]) > 1
