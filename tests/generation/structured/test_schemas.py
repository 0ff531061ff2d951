"""Random JSON schemas: every finished answer of a random model validates, and enough answers finish.

Forty run by default; `LLMCTL_SCHEMAS=300` runs them all and prints the counts. A schema is known by its number.
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
COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module")
def loaded(tiny_models: Callable[[str], Path]) -> Iterator[llmctl.LoadedModel]:
    yield llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation={"temperature": 1.5, "top_k": 0})
    answered = COUNTS["finished"] + COUNTS["token limit reached"]
    assert COUNTS["finished"] >= answered / 4, COUNTS
    print(f"\n{len(NUMBERS)} schemas, {SAMPLES} samples each: {dict(sorted(COUNTS.items()))}")  # noqa: T201


def refused_keyword(schema: Any) -> str | None:
    return next((name for name, inner in REFUSED.items() if schema.get("properties", {}).get("b") == inner), None)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_finished_answer_validates(number: int, loaded: llmctl.LoadedModel) -> None:
    schema = make_schema(number)
    jsonschema.Draft202012Validator.check_schema(schema)
    asked = with_generation(loaded, {}, structure={"json_schema": schema})
    keyword = refused_keyword(schema)
    if keyword is not None:
        with pytest.raises(UserError) as refusal:
            llmctl.generate(asked, "x")
        assert f"#/properties/b/{keyword}" in refusal.value.message
        COUNTS[f"refused: {keyword}"] += 1
        return
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for seed in range(SAMPLES):
        done = llmctl.generate(asked, "x", seed=seed, max_new_tokens=180)
        COUNTS["finished" if done.finish_reason == "stop" else "token limit reached"] += 1
        assert done.finish_reason in ("stop", "length")
        if done.finish_reason == "stop":
            validator.validate(json.loads(done.text))
