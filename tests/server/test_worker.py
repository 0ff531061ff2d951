"""The worker thread without HTTP: the errors of one request do not affect others."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llmctl
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, packed
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, make_request
from llmctl.generation.stream import stream_request
from llmctl.loading.model import LoadedModel
from llmctl.server.http_errors import RequestError
from llmctl.server.penalties import Penalties
from llmctl.server.worker import Worker

TOKENS = 12
PROMPT = "two plus two"


@pytest.fixture(scope="module")
def llama(tiny_models: Callable[[str], Path]) -> LoadedModel:
    return llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation={"temperature": 0})


@contextmanager
def working(loaded: LoadedModel) -> Iterator[Worker]:
    worker = Worker(loaded, max_queue=50, max_sequences=4)
    worker.start()
    try:
        yield worker
    finally:
        asyncio.run(worker.drain(5))
        assert not worker._thread.is_alive()


def request(loaded: LoadedModel, prompt: str = PROMPT, tokens: int = TOKENS) -> Request:
    return make_request(loaded, Prompt(tuple(loaded.tokenizer(prompt)["input_ids"])), max_new_tokens=tokens)


def answers(worker: Worker, *requests: tuple[Request, Sequence[Any]]) -> list[Completion]:
    """Return the answers to the requests of one client."""

    async def ask() -> list[Completion]:
        pending = worker.submit(requests, seconds=20)
        by_index: dict[int, Completion] = {}
        async for updates in pending.updates():
            by_index |= {update.index: update.completion for update in updates if update.completion is not None}
        return [by_index[index] for index in sorted(by_index)]

    return asyncio.run(asyncio.wait_for(ask(), 30))


def alone(request: Request, loaded: LoadedModel) -> str:
    return "".join(chunk.text for chunk in stream_request(loaded, request))


def test_a_bug_at_the_start_of_an_answer_affects_that_answer_alone(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add = Engine.add

    def adding(engine: Engine, key: Any, request: Request, processors: Sequence[Any] = ()) -> None:
        if processors:
            raise ValueError("a secret of the machine")
        add(engine, key, request, processors)

    monkeypatch.setattr(Engine, "add", adding)
    with working(llama) as worker:
        with pytest.raises(RequestError) as caught:
            answers(worker, (request(llama), [lambda _, scores: scores]))
        assert (caught.value.status, caught.value.code) == (500, "internal_error")
        assert worker.is_alive
        assert answers(worker, (request(llama), []))[0].text == alone(request(llama), llama)
    assert "a secret of the machine" in caplog.text


@pytest.mark.parametrize("architecture", ["llama", "deepseek_v3"])
def test_penalties_apply_to_packed_and_to_single_requests(
    tiny_models: Callable[[str], Path], architecture: str
) -> None:
    loaded = llmctl.load(tiny_models(architecture), load={"dtype": "float32"}, generation={"temperature": 0})
    plain, penalised = request(loaded), request(loaded)
    biased = Penalties(len(penalised.prompt), presence=0.0, frequency=0.0, bias={7: 100.0})
    barred = Penalties(len(penalised.prompt), presence=100.0, frequency=0.0, bias={7: 100.0, 9: 50.0})
    with working(loaded) as worker:
        first, second, third = answers(worker, (plain, []), (penalised, [biased]), (penalised, [barred]))
    assert first.text == alone(plain, loaded)
    assert second.token_ids == (7,) * TOKENS
    # 7, then 9; the penalty cancels a token's bias after its first use, so at most half of the tokens are 7
    assert third.token_ids[:2] == (7, 9)
    assert third.token_ids.count(7) < TOKENS // 2


def test_single_requests_are_all_answered_in_turn(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("deepseek_v3"), load={"dtype": "float32"}, generation={"temperature": 0})
    requests = [request(loaded, word) for word in ("library", "the capital of", PROMPT)]
    with working(loaded) as worker:
        completions = answers(worker, *((one, []) for one in requests))
    assert [one.text for one in completions] == [alone(one, loaded) for one in requests]


def test_a_request_that_cannot_be_packed_waits_its_turn_and_blocks_nobody(llama: LoadedModel) -> None:
    plain = request(llama)
    other = replace(plain, arguments={**plain.arguments, "prompt_lookup_num_tokens": 2})
    with working(llama) as worker:
        completions = answers(worker, (plain, []), (other, []), (plain, []), (other, []))
    assert {one.text for one in completions} == {alone(plain, llama)}


def test_a_request_that_can_never_fit_is_refused_at_once(llama: LoadedModel) -> None:
    with working(llama) as worker:
        worker._engine._packed._pool_size.planned = 3  # type: ignore[union-attr]
        with pytest.raises(RequestError) as caught:
            answers(worker, (request(llama, tokens=60), []))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_samplers_of_rare_settings_are_not_kept(llama: LoadedModel) -> None:
    """Every client may set its own temperature."""
    plain = request(llama, tokens=1)
    with working(llama) as worker:
        many = [replace(plain, arguments={**plain.arguments, "repetition_penalty": 1 + n / 1000}) for n in range(100)]
        for number in range(0, 100, 25):
            answers(worker, *((one, []) for one in many[number : number + 25]))
        assert worker._engine._packed is not None
        assert len(worker._engine._packed.samplers._kept) < 80


def test_a_server_that_ran_out_of_memory_answers_later_requests(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The request that needs the whole KV cache gets an error, once. Later ones are answered with half of it."""
    refused: list[int] = []
    with working(llama) as worker:
        runner = worker._engine._packed
        assert runner is not None
        fitting = runner.prefix_cache.count // 2

        def forward(model: Any, layout: Any, pool: CachePool, real: Any = packed.forward) -> Any:
            if pool._pages > fitting:
                refused.append(pool._pages)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(model, layout, pool)

        monkeypatch.setattr(packed, "forward", forward)
        with pytest.raises(RequestError) as caught:
            answers(worker, (replace(request(llama), budget=(fitting + 1) * runner.page_tokens), []))
        assert (caught.value.status, caught.value.code) == (503, "out_of_memory")
        short = request(llama)
        assert [one.text for one in answers(worker, (short, []), (short, []))] == [alone(short, llama)] * 2
    assert len(refused) == 1
    assert "memory ran out while generating with" in caplog.text


def test_queued_answers_wait_for_a_smaller_cache_without_an_error(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working(llama) as worker:
        passes: list[int] = []

        def forward(*arguments: Any, real: Any = packed.forward) -> Any:
            passes.append(1)
            if len(passes) == 5:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            return real(*arguments)

        monkeypatch.setattr(packed, "forward", forward)
        many = [request(llama, word) for word in ("library", "the capital of", PROMPT, "once upon a time")] * 3
        completions = answers(worker, *((one, []) for one in many))
        monkeypatch.undo()
        assert [one.text for one in completions] == [alone(one, llama) for one in many]
