"""`llmctl serve` with many clients at once."""

import http.client
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from llmctl.bench.gpu_check.workplace import SkippedError, Workplace, rounded

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_START_SECONDS, _END_SECONDS = 60, 20
_REQUESTS_PER_CLIENT = 2
_MODEL = "large"


@dataclass
class _Tally:
    """Measurements of the clients: seconds to the first piece and of the whole answer, tokens, and errors."""

    first_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)


def server(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Start a server, let all clients ask at the same time, and end it."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise SkippedError(f"not installed: {', '.join(missing)} (pip install 'llmctl-hf[serve]')")
    folder, tally, clients = str(workplace.checkpoint(_MODEL)), _Tally(), workplace.sizes.clients
    began = time.perf_counter()
    with _serving(folder, tiny=workplace.tiny) as (port, process):
        yield {"start_seconds": rounded(time.perf_counter() - began)}
        tokens = workplace.sizes.new_tokens
        _ask(port, 1, _Tally(), prompt_tokens=8, tokens=4)  # compiles and captures what the first answer needs
        began = time.perf_counter()
        threads = [
            threading.Thread(
                target=_ask,
                args=(port, number, tally),
                kwargs={"prompt_tokens": workplace.sizes.prompt_tokens, "tokens": tokens},
            )
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
        code = process.wait(_END_SECONDS)
    asked = clients * _REQUESTS_PER_CLIENT
    yield {
        "answers": {"complete": len(tally.seconds), "of": asked, "errors": tally.errors[:3], "ok": not tally.errors},
        "end": {"exit_code": code, "ok": code == 0},
    }
    rate = tally.tokens / seconds
    yield rounded({"tokens_per_second": rate, "seconds": seconds, **_spread(tally)})
    workplace.headline = f"{clients} clients: {rate:.4g} tokens/s, {len(tally.seconds)} of {asked} answers"


def _spread(tally: _Tally) -> dict[str, Any]:
    """Return the median and the maximum of the times."""
    if not tally.seconds:
        return {}
    return {
        "first_token_seconds": {"median": statistics.median(tally.first_seconds), "maximum": max(tally.first_seconds)},
        "answer_seconds": {"median": statistics.median(tally.seconds), "maximum": max(tally.seconds)},
    }


def _ask(port: int, number: int, tally: _Tally, *, prompt_tokens: int, tokens: int) -> None:
    """Send the requests of one client, one after the other, and count what comes back."""
    prompt = [(number * 7 + n * 13) % 200 + 3 for n in range(prompt_tokens)]
    body = {"model": _MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    for _ in range(_REQUESTS_PER_CLIENT):
        try:
            first, whole, count = _complete(port, {**body, "stream": True, "stream_options": {"include_usage": True}})
        except (OSError, http.client.HTTPException, ValueError) as error:
            tally.errors.append(f"{type(error).__name__}: {str(error)[:200]}")
            continue
        tally.first_seconds.append(first)
        tally.seconds.append(whole)
        tally.tokens += count


def _complete(port: int, body: dict[str, Any]) -> tuple[float, float, int]:
    """Return the seconds to the first piece, the seconds of the whole answer, and its tokens.

    Raises:
        ValueError: the server refused the request, or the answer ended early.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
    try:
        began, first, usage = time.perf_counter(), 0.0, 0
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise ValueError(f"status {answer.status}: {answer.read(300)!r}")
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter() - began
            document = json.loads(line[6:])
            if "error" in document:
                raise ValueError(str(document["error"]))
            if document.get("usage"):
                usage = document["usage"]["completion_tokens"]
        if not usage:
            raise ValueError("the answer has no usage")
        return first, time.perf_counter() - began, usage
    finally:
        connection.close()


@contextmanager
def _serving(folder: str, *, tiny: bool) -> "Iterator[tuple[int, subprocess.Popen[bytes]]]":
    """Run `llmctl serve` and yield its port and its process. It is in this process' group, and ends with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    device = ["--device-map", "cpu", "--dtype", "float32"] if tiny else []
    command = [sys.executable, "-P", "-m", "llmctl", "serve", "--model", folder, "--port", str(port)]
    options = ["--set", f"serve.model_name={_MODEL}", "--set", "serve.max_queue=1000", "--offline"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *options, *device], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_until_ready(port, process, log)
            yield port, process
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(port: int, process: "subprocess.Popen[bytes]", log: Any) -> None:
    """Wait until the server answers. Raise RuntimeError if it ends, or takes too long."""
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    log.seek(0)
    text = log.read().decode(errors="replace").strip()
    raise RuntimeError(f"llmctl serve did not start: {(text.splitlines() or [''])[-1][:300]}")
