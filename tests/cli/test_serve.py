"""`llmctl serve` in a child process: its messages and its errors."""

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from support import forkserver


def test_a_port_in_use_is_reported_before_the_model_is_resolved(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("serve", "/no/such/model", "--port", str(port))
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in ended.stderr
    assert "--port N" in ended.stderr


def models(url: str) -> Any:
    """Return the served models once the server listens, which is a moment after it reports its address."""
    until = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=20) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_its_address_and_ends_without_a_traceback(
    tiny_models: Callable[[str], Path], number: signal.Signals
) -> None:
    model = tiny_models("llama")
    command = ["serve", str(model), "--port", "0", "--json"]
    with forkserver.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            said = json.loads("".join(takewhile(lambda line: line != "}\n", child.stdout)) + "}")
            assert (said["schema"], said["model"]) == ("llmctl.serve/1", model.name)
            assert said["url"] == f"{said['page']}v1"
            address = next(line for line in child.stderr if "http://" in line)
            assert address.split()[-1] == said["page"]  # the page comes first
            assert said["url"] in child.stderr.readline()
            assert [one["id"] for one in models(said["url"])["data"]] == [model.name]
            child.send_signal(number)
            assert child.wait(20) in (0, 130)
            assert "Traceback" not in child.stderr.read()
        finally:
            child.kill()  # where something above failed: leaving the context waits for its end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_second_signal_ends_the_server_during_a_request(
    tiny_models: Callable[[str], Path], number: signal.Signals, code: int
) -> None:
    command = ["serve", str(tiny_models("llama")), "--port", "0", "--json"]
    with forkserver.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            said = json.loads("".join(takewhile(lambda line: line != "}\n", child.stdout)) + "}")
            models(said["url"])
            address = urllib.parse.urlsplit(said["url"])
            with socket.create_connection((address.hostname, address.port), timeout=20) as opened:
                head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                opened.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
                time.sleep(0.3)
                child.send_signal(number)
                with pytest.raises(subprocess.TimeoutExpired):
                    child.wait(1)
                child.send_signal(number)
                assert child.wait(10) == code
            assert "Traceback" not in child.stderr.read()
        finally:
            child.kill()
