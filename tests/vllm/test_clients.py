"""The unmodified openai client on both engines (`make test-vllm`)."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from llmctl.vllm.process import free_port

KEY = "0123456789abcdef-secret"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ENGINES = {
    "transformers": [],
    "vllm": ["--engine", "vllm", "--set", "vllm.extra={enforce_eager: true}", "--set", "vllm.max_model_len=2048"],
}
pytestmark = [pytest.mark.vllm, pytest.mark.smollm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def client(
    request: pytest.FixtureRequest, smollm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """Yield a client of `llmctl serve` with SmolLM2 on one of the engines."""
    port = free_port()
    options = ENGINES[request.param]
    if request.param == "vllm":
        options = [*options, "--vllm-python", os.environ["LLMCTL_VLLM_PYTHON"]]
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMCTL_")}
    environment |= {"LLMCTL_API_KEY": KEY, "LLMCTL_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    log = home / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmctl", "serve", str(smollm), "--port", str(port), "--dtype", "fp32",
             "--model-name", "smol", *options],
            stdout=file, stderr=file, env=environment,
        )  # fmt: skip
    try:
        while not answers(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0) as made:
            yield made
    finally:
        process.terminate()
        process.wait(60)


def answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def test_a_greedy_answer_is_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smol", messages=QUESTION, max_tokens=20)
    assert whole.choices[0].message.content == "The capital of France is Paris."
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (37, 8)
    stream = client.chat.completions.create(
        model="smol", messages=QUESTION, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_stop_strings_and_token_limits_end_answers(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(model="smol", messages=QUESTION, max_tokens=20, stop=[" Paris"])
    assert stopped.choices[0].message.content == "The capital of France is"
    assert stopped.choices[0].finish_reason == "stop"
    short = client.completions.create(model="smol", prompt="Once upon a time", max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3


def test_a_seed_repeats_an_answer_and_n_gives_several(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        done = client.chat.completions.create(
            model="smol", messages=QUESTION, max_tokens=12, temperature=1.5, seed=seed, n=2
        )
        return [choice.message.content for choice in done.choices]

    first = ask(7)
    assert len(first) == 2
    assert first == ask(7)
    assert any(ask(seed) != first for seed in (8, 9))


def test_log_probabilities_include_the_top_tokens(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="smol", messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3)
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [one.token for one in logprobs.content] == ["The", " capital", " of", " France"]
    assert all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in logprobs.content)
    assert logprobs.content[0].logprob == pytest.approx(-1.8643, abs=1e-2)


def test_an_answer_follows_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    done = client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "Describe a person"}],
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
    )
    value = json.loads(done.choices[0].message.content or "")
    assert set(value) == {"name", "age"}
    assert isinstance(value["age"], int)


def test_errors_have_their_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=QUESTION)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="smol", messages=QUESTION, temperature=-1)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="0123456789abcdef-wrong").models.list()
    assert [model.id for model in client.models.list()] == ["smol", "SmolLM2-135M-Instruct"]


def test_every_path_is_guarded(client: openai.OpenAI) -> None:
    base = str(client.base_url).removesuffix("/v1/")
    body = {"model": "smol", "messages": QUESTION}
    for path in ("/invocations", "/v1/chat/completions", "/tokenize"):
        assert httpx2.post(f"{base}{path}", json=body, trust_env=False).status_code == 401, path
    other_name = httpx2.get(f"{base}/health", headers={"Host": "rebound.example"}, trust_env=False)
    assert other_name.status_code == 403
    deep = b'{"messages": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    refused = httpx2.post(f"{base}/v1/chat/completions", content=deep, headers=headers, trust_env=False)
    assert refused.status_code == 400
    assert client.models.list()
