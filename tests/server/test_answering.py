"""Answers to clients that have disconnected, and the names of a model."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llmctl
from llmctl.model.resolve import names_of
from llmctl.server.app import make_app
from llmctl.server.registry import ModelRegistry
from llmctl.server.worker import Worker


def test_a_client_that_disconnects_before_the_first_byte_of_a_stream_frees_its_place(
    tiny_models: Callable[[str], Path],
) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32"})
    worker = Worker(loaded, max_queue=4)
    app = make_app(ModelRegistry("tiny", loaded, worker, 1, 60.0), drain_seconds=2)
    body = b'{"model": "tiny", "prompt": "once", "max_tokens": 240, "stream": true, "logit_bias": {"0": -100}}'
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "asgi": {"spec_version": "2.3"}}

    async def ask() -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            await asyncio.sleep(60)

        await app(scope, receive, send)

    async def main() -> None:
        await asyncio.wait_for(ask(), 20)
        worker.start()
        await worker.drain(20)
        assert not worker.is_alive
        assert worker.load().generated_tokens < 3

    asyncio.run(main())


def test_clients_see_only_the_name_of_a_folder(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32"})
    folder = tiny_models("llama").name
    assert names_of(loaded.resolved.source, None) == [folder]
    assert names_of(loaded.resolved.source, "gpt-4o") == ["gpt-4o", folder]
    registry = ModelRegistry("gpt-4o", loaded, Worker(loaded, max_queue=1), 1, 60.0, other_names=(folder,))
    registry.check_model(folder)
    registry.check_model("gpt-4o")
