"""The server with a tiny model behind the real app, guard and uvicorn."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from llmctl.generation.stream import stream_request
from llmctl.server.app import OPEN_PATHS, make_app
from llmctl.server.registry import ModelRegistry
from llmctl.server.security.guard import Guard, Rules
from llmctl.server.worker import Worker
from support.listening import Answer, call, connected, listening

QUEUE = 6


@dataclass(frozen=True)
class Running:
    """A server under test."""

    port: int
    registry: ModelRegistry

    def post(self, path: str, **body: Any) -> Answer:
        return call(self.port, path=path, body={"model": "tiny", **body})


@contextmanager
def serving(loaded: llmctl.LoadedModel) -> Iterator[Running]:
    worker = Worker(loaded, max_queue=QUEUE, max_sequences=4)
    registry = ModelRegistry("tiny", loaded, worker, 1, 60.0)
    app = Guard(make_app(registry, drain_seconds=1), Rules(open_paths=OPEN_PATHS))
    with listening(app) as port:
        yield Running(port, registry)


@pytest.fixture(scope="module")
def server(tiny_models: Callable[[str], Path]) -> Iterator[Running]:
    with serving(
        llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation={"temperature": 0})
    ) as running:
        yield running


def alone(registry: ModelRegistry, prompt: str, tokens: int) -> str:
    """Return the model's text for a prompt alone."""
    loaded = registry.loaded
    request = make_request(loaded, Prompt(tuple(loaded.tokenizer(prompt)["input_ids"])), max_new_tokens=tokens)
    return "".join(chunk.text for chunk in stream_request(loaded, request))


def streamed(answer: Answer) -> list[dict[str, Any]]:
    """Return the documents of a stream, after a check of its end."""
    lines = [line for line in answer.body.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_completion_is_the_text_of_its_prompt_alone_whole_and_streamed(server: Running) -> None:
    expected = alone(server.registry, "once upon a time", 20)
    whole = server.post("/v1/completions", prompt="once upon a time", max_tokens=20)
    document = json.loads(whole.body)
    assert document["choices"][0]["text"] == expected
    assert document["usage"]["completion_tokens"] <= 20
    body = {"prompt": "once upon a time", "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
    pieces = streamed(server.post("/v1/completions", **body))
    assert "".join(choice["text"] for piece in pieces for choice in piece["choices"]) == expected
    assert pieces[-1]["usage"] == document["usage"]


def test_concurrent_clients_get_their_own_texts(server: Running) -> None:
    prompts = [f"the {word} of" for word in ("capital", "library", "book", "model")]
    expected = [alone(server.registry, prompt, 24) for prompt in prompts]
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        answer = server.post("/v1/completions", prompt=prompts[number], max_tokens=24, stream=number % 2 == 0)
        documents = streamed(answer) if number % 2 == 0 else [json.loads(answer.body)]
        texts[number] = "".join(choice["text"] for one in documents for choice in one["choices"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[number] for number in range(len(prompts))] == expected


def test_a_conversation_is_answered_and_streamed(server: Running) -> None:
    messages = [{"role": "user", "content": "two plus two"}]
    whole = json.loads(server.post("/v1/chat/completions", messages=messages, max_tokens=8).body)
    message = whole["choices"][0]["message"]
    assert message["role"] == "assistant"
    pieces = streamed(server.post("/v1/chat/completions", messages=messages, max_tokens=8, stream=True))
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == message["content"]
    assert pieces[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_a_stream_reports_its_seeds_at_the_beginning_so_that_a_stopped_answer_can_be_repeated(server: Running) -> None:
    messages = [{"role": "user", "content": "two plus two"}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 1, "n": 2, "stream": True}
    choices = [one["choices"][0] for one in streamed(server.post("/v1/chat/completions", **body))]
    opening = {choice["index"]: choice["seed"] for choice in choices if choice["delta"].get("role")}
    assert opening == {choice["index"]: choice["seed"] for choice in choices if choice["finish_reason"]}
    assert opening[1] == (opening[0] + 1) % 2**32


def test_each_of_n_answers_has_its_own_seed_and_a_seed_repeats_answers(server: Running) -> None:
    body = {"prompt": "the", "max_tokens": 12, "n": 3, "temperature": 2, "seed": 5}
    first = json.loads(server.post("/v1/completions", **body).body)
    again = json.loads(server.post("/v1/completions", **body).body)
    texts = [choice["text"] for choice in first["choices"]]
    assert len(set(texts)) == 3
    assert texts == [choice["text"] for choice in again["choices"]]


def test_only_the_served_model_exists_and_never_a_path(server: Running) -> None:
    for name in ("other", "../tiny", "/etc/passwd", str(server.registry.loaded.resolved.folder)):
        answer = call(server.port, path="/v1/completions", body={"model": name, "prompt": "x"})
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert call(server.port, "GET", "/v1/models/tiny").status == 200
    assert call(server.port, "GET", "/v1/models/..%2Ftiny").status == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 1000), ("n", "2"), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 10**9),
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", [1]), ("top_p", 0),
        ("logprobs", 21), ("logprobs", -1), ("stop", ""), ("stop", ["x"] * 17), ("stop", ["x" * 2000]), ("stop", 7),
        ("presence_penalty", 3), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 1000}), ("logit_bias", {"99999": 1}),
        ("seed", 2**70), ("stream", "yes"), ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", {}),
        ("prompt", [99999]), ("prompt", ["a", 7]), ("prompt", "word " * 2000), ("model", None), ("model", 7),
    ],
)  # fmt: skip
def test_every_number_and_list_has_a_bound(server: Running, field: str, value: Any) -> None:
    answer = server.post("/v1/completions", **{"prompt": "x", "max_tokens": 1, field: value})
    assert answer.status == 400
    assert answer.error


@pytest.mark.parametrize(
    ("count", "code", "param"),
    [(9_999, "context_length_exceeded", None), (10_000, None, "input"), (10_001, None, "input")],
)
def test_instructions_count_as_a_message(server: Running, count: int, code: str | None, param: str | None) -> None:
    messages = [{"role": "user", "content": ""}] * count
    answer = server.post("/v1/responses", input=messages, instructions="be brief")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)


def test_a_template_in_a_request_is_refused(server: Running) -> None:
    messages = [{"role": "user", "content": "two plus two"}]
    for name in ("chat_template", "template"):
        answer = server.post("/v1/chat/completions", messages=messages, **{name: "{{ cycler.__init__.__globals__ }}"})
        assert (answer.status, answer.error["param"]) == (400, name)
    for name in ("chat_template", "messages", "tokenize", "sanitize_control_tokens"):
        answer = server.post("/v1/chat/completions", messages=messages, chat_template_kwargs={name: False})
        assert (answer.status, answer.error["param"]) == (400, f"chat_template_kwargs.{name}")


def test_requests_beyond_the_queue_are_refused_with_retry_after_and_the_others_answered(server: Running) -> None:
    answers: list[Answer] = []

    def ask() -> None:
        answers.append(server.post("/v1/completions", prompt="once", max_tokens=150))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 4 + QUEUE
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_place(server: Running, stream: bool) -> None:
    body = json.dumps({"model": "tiny", "prompt": "once", "max_tokens": 200, "stream": stream}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(server.port) as opened:
        opened.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        _until(lambda: server.registry.worker.load().running == 1)
    _until(lambda: server.registry.worker.load().running == 0)


def test_a_request_over_its_time_limit_is_cancelled(server: Running) -> None:
    from dataclasses import replace

    hasty = replace(server.registry, name="hasty", request_seconds=0.01)
    with listening(Guard(app_of(hasty), Rules())) as port:
        answer = call(port, path="/v1/completions", body={"model": "hasty", "prompt": "x", "max_tokens": 200})
    assert (answer.status, answer.error["code"]) == (503, "deadline_exceeded")


def app_of(registry: ModelRegistry) -> Any:
    """Return an app around a running worker."""
    from fastapi import FastAPI

    from llmctl.server.http_errors import add_error_handlers
    from llmctl.server.routes import add_routes

    app = FastAPI()
    add_error_handlers(app)
    add_routes(app, registry)
    return app


@pytest.mark.parametrize("error", ["memory", "bug"])
def test_a_failed_step_is_an_error_and_the_server_continues(
    server: Running, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    from llmctl.errors import MachineError
    from llmctl.generation.engine import Engine

    raised = MachineError("memory ran out") if error == "memory" else RuntimeError("a bug")
    step = Engine.step

    def failing(engine: Engine) -> Any:
        monkeypatch.setattr(Engine, "step", step)
        raise raised

    monkeypatch.setattr(Engine, "step", failing)
    answer = server.post("/v1/completions", prompt="once", max_tokens=5)
    assert answer.status == (503 if error == "memory" else 500)
    assert answer.error["type"] == "server_error"
    assert server.post("/v1/completions", prompt="once", max_tokens=5).status == 200


def test_health_and_readiness_need_no_key_and_reveal_nothing(server: Running) -> None:
    assert json.loads(call(server.port, "GET", "/health").body) == {"status": "ok"}
    assert json.loads(call(server.port, "GET", "/ready").body) == {"status": "ok"}
    assert call(server.port, "GET", "/docs").status == 404


def _until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_prometheus_metrics_count_requests_and_tokens(server: Running) -> None:
    before = metrics(server)
    server.post("/v1/completions", prompt="once upon", max_tokens=5)
    server.post("/v1/completions", prompt="once upon", max_tokens=5, stream=True)
    server.post("/v1/completions", prompt=[99999])
    after = metrics(server)
    assert after["llmctl_generated_tokens_total"] - before["llmctl_generated_tokens_total"] == 10
    assert after['llmctl_requests_total{outcome="answered"}'] - before['llmctl_requests_total{outcome="answered"}'] == 2
    first = "llmctl_time_to_first_token_seconds_count"
    assert after[first] - before[first] == 2
    assert after["llmctl_answers_running"] == after["llmctl_answers_waiting"] == 0
    assert after["llmctl_kv_cache_usage_ratio"] == 0


def metrics(server: Running) -> dict[str, float]:
    """Return the metrics that Prometheus reads."""
    answer = call(server.port, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_a_draft_is_used_and_reported_and_changes_no_text(server: Running, tiny_models: Callable[[str], Path]) -> None:
    folder = tiny_models("llama")
    loaded = llmctl.load(
        folder,
        load={"dtype": "float32"},
        generation={"temperature": 0},
        draft={"id": str(folder), "num_assistant_tokens": 3, "assistant_confidence_threshold": 0},
    )
    with serving(loaded) as drafting:
        for prompt in ("the capital of france", "two plus two"):
            plain, drafted = (
                json.loads(one.post("/v1/completions", prompt=prompt, max_tokens=16).body) for one in (server, drafting)
            )
            assert drafted["choices"] == plain["choices"]
            details = drafted["usage"].pop("completion_tokens_details")
            assert drafted["usage"] == plain["usage"]
            assert details["accepted_prediction_tokens"] > 8
            assert details["rejected_prediction_tokens"] >= 0
        usage = drafting.post(
            "/v1/completions", prompt="it", max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        assert streamed(usage)[-1]["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0
        counts = metrics(drafting)
        assert counts["llmctl_drafted_tokens_total"] >= counts["llmctl_accepted_tokens_total"] > 16
        assert counts["llmctl_generated_tokens_total"] == 40
