"""Access to a server that was started by `llmctl serve`."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.listening import Answer, answer_on, call, connected
from support.served import served

KEY = "k3y-of-the-first-client"
OTHER = "k3y-of-the-second-client"


@dataclass(frozen=True)
class ServerProcess:
    """A server in a child process."""

    port: int
    model: Path
    log: Path

    def call(self, method: str = "GET", path: str = "/v1/models", key: str | None = KEY, **options: Any) -> Answer:
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        return call(self.port, method, path, headers=headers, **options)

    def complete(self, **body: Any) -> Answer:
        return self.call("POST", "/v1/completions", body={"model": "tiny", "prompt": "once", "max_tokens": 2} | body)


@pytest.fixture(scope="module")
def public_server(
    tiny_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server on every address, with a key file, an allowed host and an allowed origin."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "keys").write_text(f"# two clients\n{KEY}\n{OTHER}\n")
    model = tiny_models("llama")
    settings = ["serve.allowed_hosts=[chat.example]", "serve.allowed_origins=[https://app.example]"]
    arguments = [str(model), "--model-name", "tiny", "--host", "0.0.0.0", "--api-key-file", str(folder / "keys")]
    arguments += [part for setting in settings for part in ("--set", setting)]
    with served(*arguments, log_to=folder / "log", LLMCTL_HOME=str(folder), OMP_NUM_THREADS="1") as address:
        yield ServerProcess(int(address.rpartition(":")[2]), model, folder / "log")


def test_by_default_it_listens_on_the_loopback_without_a_key(tiny_models: Callable[[str], Path]) -> None:
    with served(str(tiny_models("llama")), "--model-name", "tiny") as address:
        port = int(address.rpartition(":")[2])
        listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
        assert listening == {"127.0.0.1"}
        assert call(port, "GET", "/v1/models").status == 200
        assert call(port, "GET", "/v1/models", headers={"Host": "evil.example"}).status == 403
        assert call(port, "GET", "/v1/models", headers={"Origin": "http://evil.example"}).status == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "some-machine"])
def test_a_public_address_without_a_key_is_refused_before_loading(run: Callable[..., Any], host: str) -> None:
    ended = run("serve", "--host", host)
    assert ended.returncode == 2
    assert "--api-key-file" in ended.stderr
    assert "--no-api-key" in ended.stderr


def test_a_bad_key_is_refused_and_not_shown(run: Callable[..., Any]) -> None:
    ended = run("serve", "--host", "0.0.0.0", LLMCTL_API_KEY="hush-hush")
    assert ended.returncode == 2
    assert "API key 1" in ended.stderr
    assert "hush" not in ended.stderr + ended.stdout


def test_another_address_is_allowed_with_explicit_consent_or_a_key_in_the_environment(
    tiny_models: Callable[[str], Path],
) -> None:
    model = str(tiny_models("llama"))
    with served(model, "--host", "0.0.0.0", "--no-api-key") as address:
        assert call(int(address.rpartition(":")[2]), "GET", "/v1/models").status == 200
    with served(model, "--host", "0.0.0.0", LLMCTL_API_KEY=f"{KEY},{OTHER}") as address:
        port = int(address.rpartition(":")[2])
        assert call(port, "GET", "/v1/models").status == 401
        assert call(port, "GET", "/v1/models", headers={"Authorization": f"Bearer {OTHER}"}).status == 200


def test_every_key_is_accepted_and_no_other(public_server: ServerProcess) -> None:
    assert [public_server.call(key=key).status for key in (KEY, OTHER, None, KEY + "x", "")] == [
        200,
        200,
        401,
        401,
        401,
    ]
    assert public_server.call(path="/health", key=None).status == 200
    assert [public_server.call(path=path, key=None).status for path in ("/metrics", "/openapi.json")] == [401, 401]


def test_hosts_and_origins_are_those_of_the_configuration(public_server: ServerProcess) -> None:
    for host, status in (("chat.example", 200), ("10.1.2.3:80", 200), ("evil.example", 403), ("x.chat.example", 403)):
        assert public_server.call(headers={"Host": host}).status == status
    answer = public_server.call(headers={"Origin": "https://app.example"})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
    assert public_server.call(headers={"Origin": "https://evil.example"}).status == 403


def test_bodies_have_limits_of_size_and_depth_and_must_be_json(public_server: ServerProcess) -> None:
    path = "/v1/completions"
    large = b'{"model": "tiny", "prompt": "' + b"x" * (33 << 20) + b'"}'
    assert public_server.call("POST", path, body=large).status == 413
    assert public_server.call("POST", path, body=b"[" * 100_000).status == 400
    assert public_server.call("POST", path, body=b'{"a":' * 100 + b"1" + b"}" * 100).status == 400
    assert public_server.call("POST", path, body=b"{}", headers={"Content-Type": "text/plain"}).status == 415
    with connected(public_server.port) as opened:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        opened.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(33):
            opened.sendall(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
        assert answer_on(opened).status == 413
    assert public_server.complete().status == 200


def test_only_the_name_selects_the_model(public_server: ServerProcess) -> None:
    for name in (str(public_server.model), "../llama", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        answer = public_server.complete(model=name)
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_no_secret_is_in_the_log(public_server: ServerProcess) -> None:
    path = "/v1/completions?token=query-secret"
    body = {"model": "tiny", "prompt": "prompt-secret", "max_tokens": 2}
    assert public_server.call("POST", path, body=body).status == 200
    assert public_server.call(key="guessed-secret-key").status == 401
    assert public_server.call("POST", "/v1/completions", body=body | {"n": "value-secret"}).status == 400
    end = time.monotonic() + 5
    while "POST /v1/completions 400" not in (text := public_server.log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    for secret in (KEY, OTHER, "secret", "Bearer"):
        assert secret not in text
    assert "GET /v1/models 401" in text


def test_every_answer_has_the_security_headers(public_server: ServerProcess) -> None:
    for answer in (public_server.complete(), public_server.call(key=None), public_server.call(path="/nothing")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_on_sigterm_running_answers_finish_and_new_requests_are_refused(tiny_models: Callable[[str], Path]) -> None:
    with served(str(tiny_models("llama")), "--model-name", "tiny", "--set", "serve.drain_seconds=20") as address:
        port = int(address.rpartition(":")[2])
        [child] = [c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
        body = json.dumps({"model": "tiny", "prompt": "once", "max_tokens": 200, "stream": True}).encode()
        with connected(port) as opened:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            opened.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert opened.recv(10)  # generation has started
            os.kill(child, signal.SIGTERM)
            rest = b""
            while piece := opened.recv(65536):
                rest += piece
        assert b"data: [DONE]" in rest
        with pytest.raises(OSError, match="refused"):
            call(port, "GET", "/health")
