"""Errors in OpenAI's shape, from a FastAPI app."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field

from llmctl.errors import MachineError, RemoteError, UserError
from llmctl.server.http_errors import RequestError, add_error_handlers
from llmctl.server.security.guard import Guard, Rules
from support.listening import call, listening


class Part(BaseModel):
    content: str


class Body(BaseModel):
    messages: list[Part] = Field(min_length=1)
    n: int = Field(1, ge=1, le=4)


RAISED: dict[str, Exception] = {
    "user": UserError("the prompt has 9 tokens, the context holds 8", hint="run llmctl with a longer one"),
    "memory": MachineError("memory ran out", details={"path": "/home/somebody"}),
    "remote": RemoteError("the Hub is away"),
    "busy": RequestError("the queue is full", status=429, code="queue_full", headers={"Retry-After": "3"}),
    "bug": KeyError("inside"),
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/v1/things")
    async def things(body: Body, q: int = 0) -> int:
        return body.n + q

    @app.get("/raise/{name}")
    async def raising(name: str) -> None:
        raise RAISED[name]

    with listening(Guard(app, Rules())) as number:
        yield number


def test_an_unknown_path_is_a_404(port: int) -> None:
    answer = call(port, "GET", "/v1/nothing")
    assert answer.status == 404
    assert answer.error == {
        "message": "Invalid URL (GET /v1/nothing); this server has /v1/things",
        "type": "invalid_request_error",
        "param": None,
        "code": "unknown_url",
    }


def test_a_wrong_method_is_a_405(port: int) -> None:
    answer = call(port, "GET", "/v1/things")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert answer.error["code"] == "method_not_supported"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "messages", "messages: Field required"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"content": "hi"}, {"content": 7}]}, "messages[1].content", "valid string"),
        ({"messages": [{"content": "hi"}], "n": 9}, "n", "less than or equal to 4"),
        ({"messages": [{"content": "hi"}], "n": "many"}, "n", "valid integer"),
        ([], None, "valid dictionary"),
        ({"messages": [{}] * 9}, "messages[0].content", "and 4 more"),
    ],
)
def test_an_invalid_body_is_a_400_that_names_the_field(
    port: int, body: object, param: str | None, message: str
) -> None:
    answer = call(port, path="/v1/things", body=body)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert message in answer.error["message"]


def test_an_invalid_value_is_not_echoed(port: int) -> None:
    answer = call(port, path="/v1/things", body={"messages": [{"content": "hi"}], "n": "sk-secret"})
    assert answer.status == 400
    assert b"secret" not in answer.body


def test_a_missing_body_and_a_wrong_query_are_400(port: int) -> None:
    assert call(port, path="/v1/things").error["message"]
    assert call(port, path="/v1/things").status == 400
    answer = call(port, path="/v1/things?q=x", body={"messages": [{"content": "hi"}]})
    assert (answer.status, answer.error["param"]) == (400, "q")


@pytest.mark.parametrize(
    ("name", "status", "kind", "code"),
    [
        ("user", 400, "invalid_request_error", None),
        ("memory", 503, "server_error", "out_of_resources"),
        ("remote", 503, "server_error", None),
        ("busy", 429, "rate_limit_error", "queue_full"),
        ("bug", 500, "server_error", "internal_error"),
    ],
)
def test_internal_errors_have_their_status(port: int, name: str, status: int, kind: str, code: str | None) -> None:
    answer = call(port, "GET", f"/raise/{name}")
    assert (answer.status, answer.error["type"], answer.error["code"]) == (status, kind, code)
    assert b"inside" not in answer.body
    assert b"somebody" not in answer.body
    if status in (429, 503) and name != "remote":
        assert answer.headers["retry-after"]


def test_a_long_message_is_cut() -> None:
    assert len(RequestError("x" * 100_000).body()["error"]["message"]) < 3000
