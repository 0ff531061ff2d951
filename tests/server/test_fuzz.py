"""Malformed requests: no answer is a 5xx, errors have OpenAI's shape, and the server stays healthy."""

import copy
import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.server.app import make_app
from llmctl.server.registry import ModelRegistry
from llmctl.server.security.guard import Guard, Rules
from llmctl.server.worker import Worker
from support.listening import call, listening
from support.served import served
from support.tiny import write_model

SCHEMATHESIS = os.environ.get("LLMCTL_SCHEMATHESIS")
CASES = 400
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_SAMPLING = {
    "model": "tiny", "n": 1, "seed": 1, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "stop": ["x"],
    "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"5": 1},
    "stop_token_ids": [7], "min_tokens": 1, "skip_special_tokens": False, "user": "a", "metadata": {"a": "b"},
}  # fmt: skip
_FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
_CALLED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_MESSAGES = [
    {"role": "system", "content": "be"},
    {"role": "user", "content": [{"type": "text", "text": "two plus two"}]},
    {"role": "assistant", "content": None, "tool_calls": [_CALLED]},
    {"role": "tool", "tool_call_id": "1", "content": "four"},
    {"role": "assistant", "content": "so", "reasoning_content": "hm", "refusal": None, "annotations": []},
]
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
_CHAT = {**_SAMPLING, "messages": _MESSAGES, "max_tokens": 2, "logprobs": True, "top_logprobs": 1}
_STRUCTURED = {"model": "tiny", "messages": _MESSAGES, "max_tokens": 2, "temperature": 0.5}
_ITEMS = [
    {"role": "user", "content": "once"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "upon"}]},
]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {**_SAMPLING, "prompt": "once upon", "max_tokens": 2, "logprobs": 1}),
    ("/v1/chat/completions", {**_CHAT, "tools": [_TOOL], "tool_choice": "auto"}),
    ("/v1/chat/completions", {**_CHAT, **_STREAM, "ignore_eos": True, "continue_final_message": True, "n": 2}),
    ("/v1/chat/completions", {**_STRUCTURED, "response_format": _FORM, "chat_template_kwargs": {}}),
    (
        "/v1/completions",
        {"model": "tiny", "max_tokens": 2, "prompt": [5, 6], "structured_outputs": {"choice": ["a", "b"]}},
    ),
    ("/v1/responses", {"model": "tiny", "input": _ITEMS, "text": {"format": {"type": "text"}}, "reasoning": {}}),
    ("/tokenize", {"model": "tiny", "messages": _MESSAGES, "add_generation_prompt": False, "tools": [_TOOL]}),
]
STRANGE_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 0.5, -0.0, 1e-308, 1e308, 5e-324, "", " ", "x", "\x00",
    "\ufffe", "🙂" * 50, "x" * 5000,
    "<|im_end|>", "../../etc/passwd", "{{ 7 * 7 }}", "-1", "NaN", [], [[]], [None], [0],
    [-1], [399, 400], ["x"] * 50, {}, {"": {}}, {"x": None}, {"type": "object"}, {"$ref": "#"}, {"anyOf": []},
    {"type": "string", "pattern": "(("}, {"enum": []}, [{"role": "user"}], "json_object", "required", "text",
]  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = write_model(tmp_path_factory.mktemp("long") / "llama", max_position_embeddings=4096)
    loaded = llmctl.load(folder, load={"dtype": "float32"}, generation={"max_new_tokens": 3})
    model = ModelRegistry("tiny", loaded, Worker(loaded, max_queue=100), 1, 60.0)
    with listening(Guard(make_app(model, drain_seconds=1), Rules())) as number:
        yield number


def positions(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value of a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(position for key, inner in pairs for position in positions(inner, (*path, key)))]


def mutated(body: dict[str, Any], chance: random.Random) -> Any:
    """Return the body with one or two values replaced or removed."""
    document: Any = {"": copy.deepcopy(body)}
    for name in chance.sample(sorted(body), chance.randrange(len(body) // 2)):
        if name not in ("model", "prompt", "messages"):
            del document[""][name]
    for _ in range(chance.randint(1, 2)):
        *path, last = chance.choice(positions(document)[1:])
        inner = document
        for key in path:
            inner = inner[key]
        if chance.random() < 0.15 and path:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(chance.choice(STRANGE_VALUES))
    return document[""]


def test_the_unchanged_bodies_are_answered(port: int) -> None:
    for path, body in BODIES:
        answer = call(port, path=path, body=body)
        assert answer.status == 200, (path, answer.body)


def test_no_mutated_body_causes_a_5xx(port: int) -> None:
    chance = random.Random(11)
    statuses: dict[int, int] = {}
    for number in range(CASES):
        path, body = BODIES[number % len(BODIES)]
        body = mutated(body, chance)
        answer = call(port, path=path, body=body)
        assert answer.status < 500, (path, json.dumps(body), answer.body)
        assert b"the server failed" not in answer.body, (path, json.dumps(body))  # in a stream
        if answer.status >= 400:
            assert answer.error
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
    assert statuses[200] > CASES / 20, "all are refused, so nothing behind the validation is tested"
    assert statuses[400] > CASES / 10


def test_flipped_bytes_cause_no_5xx(port: int) -> None:
    chance = random.Random(12)
    for number in range(CASES // 2):
        path, body = BODIES[number % len(BODIES)]
        data = bytearray(json.dumps(body).encode())
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        answer = call(port, path=path, body=bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
        assert answer.status < 500, (path, bytes(data), answer.body)


def test_an_extreme_request_does_not_harm_concurrent_ones(port: int) -> None:
    """An overflow would fail the step of all running requests."""
    for values in ({"temperature": 5e-324}, {"temperature": 2, "repetition_penalty": 0.01}, {"top_p": 1e-300}):
        for extreme in ({}, {"logit_bias": {str(token): -100 for token in range(300)}}, {"min_p": 1.0}):
            body = {"model": "tiny", "prompt": "once upon", "max_tokens": 5, **values, **extreme}
            assert call(port, path="/v1/completions", body=body).status == 200, body


def test_the_openapi_document_describes_the_responses(port: int) -> None:
    document = json.loads(call(port, "GET", "/openapi.json").body)
    completions = document["paths"]["/v1/completions"]["post"]["responses"]
    assert set(completions) == {"200", "default"}
    assert document["components"]["schemas"]["CompletionBody"]["properties"]["model"]["enum"] == ["tiny"]


@pytest.mark.skipif(SCHEMATHESIS is None, reason="make serve-fuzz")
@pytest.mark.timeout(1200)
def test_schemathesis_finds_no_5xx_and_no_answer_that_is_not_described(
    tiny_models: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = ["--set", "generation.max_new_tokens=8"]
    with served(str(tiny_models("llama")), "--model-name", "tiny", *settings) as address:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        ended = subprocess.run(
            [str(SCHEMATHESIS), "run", f"{address}/openapi.json", "--checks", checks, "--max-examples", "250",
             "--suppress-health-check", "all", "--continue-on-failure", "--request-timeout", "60"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )  # fmt: skip
        print(ended.stdout[-2000:])  # noqa: T201 (for whoever runs make serve-fuzz)
        assert ended.returncode == 0, ended.stdout[-8000:]
        assert int(re.findall(r"(\d+) generated", ended.stdout)[-1]) >= 2000
        assert call(int(address.rpartition(":")[2]), "GET", "/ready").status == 200
