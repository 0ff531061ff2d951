"""The paged KV cache shrinks when memory runs out: running answers go on with the same text, and it grows again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llmctl
from llmctl.errors import MachineError
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, EngineCapacity, packed
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.pool_size import PoolSize
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, make_request
from llmctl.loading.model import LoadedModel

ROOMY = EngineCapacity(64, 512, 4096)  # 256 pages


@pytest.fixture(scope="module", params=[True, False], ids=["program", "modules"])
def loaded(request: pytest.FixtureRequest, tiny_models: Callable[[str], Path]) -> LoadedModel:
    settings = {"max_new_tokens": 24, "temperature": 0.9}
    load = {"dtype": "float32", "cpu_kernels": request.param}
    return llmctl.load(tiny_models("llama"), load=load, generation=settings)


def make_card_small(patch: pytest.MonkeyPatch, *, fitting_pages: int = 40) -> None:
    """Let the allocation of more pages fail, as on a card with little memory."""

    def small(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def checked(pool: CachePool, *arguments: Any) -> Any:
            if pool._pages > fitting_pages:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return allocate(pool, *arguments)

        return checked

    for name in ("_new", "kv_tensors"):
        patch.setattr(CachePool, name, small(getattr(CachePool, name)))


def requests_for(loaded: LoadedModel, count: int) -> list[Request]:
    prompts = [tuple(range(7 + n, 30 + 3 * n)) for n in range(count)]
    return [make_request(loaded, Prompt(ids), seed=n) for n, ids in enumerate(prompts)]


def long_request(loaded: LoadedModel) -> Request:
    """Return a request that may need 38 pages."""
    return replace(make_request(loaded, Prompt(tuple(range(5, 200)))), budget=400)


def texts(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    found = dict(engine.run(enumerate(requests)))
    assert all(isinstance(one, Completion) for one in found.values()), found
    return [found[number].token_ids for number in range(len(requests))]


def test_the_pool_is_halved_until_it_fits_and_every_answer_is_the_same(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_for(loaded, 10)
    expected, engine = texts(Engine(loaded, ROOMY), requests), Engine(loaded, ROOMY)
    make_card_small(monkeypatch)
    assert texts(engine, requests) == expected
    assert engine._packed is not None
    assert engine._packed.prefix_cache.count == 32


def test_answers_that_are_half_written_continue_with_a_smaller_pool(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_for(loaded, 4)
    expected, engine = texts(Engine(loaded, ROOMY), requests), Engine(loaded, ROOMY)
    passes: list[int] = []

    def fails_once(*arguments: Any, real: Any = packed.forward) -> Any:
        passes.append(len(passes))
        if len(passes) == 10:
            raise torch.AcceleratorError("CUDA error: out of memory", 2)
        return real(*arguments)

    monkeypatch.setattr(packed, "forward", fails_once)
    assert texts(engine, requests) == expected
    assert engine._packed is not None
    assert engine._packed.prefix_cache.count == 128


def test_memory_that_runs_out_while_tokens_are_chosen_loses_none(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [replace(request, logprobs=1) for request in requests_for(loaded, 4)]
    expected, engine = texts(Engine(loaded, ROOMY), requests), Engine(loaded, ROOMY)
    passes: list[int] = []

    def fails_once(*arguments: Any, real: Any = packed.next_tokens, **options: Any) -> Any:
        passes.append(len(passes))
        if len(passes) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*arguments, **options)

    monkeypatch.setattr(packed, "next_tokens", fails_once)
    found = dict(engine.run(enumerate(requests)))
    assert [found[number].token_ids for number in range(4)] == expected
    assert all(len(answer.logprobs or ()) == 24 for answer in found.values() if isinstance(answer, Completion))
    assert engine.kv_tokens == 2048


def test_an_answer_that_fits_no_smaller_pool_fails_and_later_ones_use_a_smaller_pool(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(loaded, EngineCapacity(4, 512, 1024))  # 64 pages
    make_card_small(monkeypatch)
    engine.add("long", long_request(loaded))
    with pytest.raises(MachineError, match="memory ran out while generating with"):
        engine.step()
    engine.recover()
    assert not engine.is_busy
    short = requests_for(loaded, 3)
    assert texts(engine, short) == texts(Engine(loaded, EngineCapacity(4, 512, 512)), short)


def test_a_request_that_the_shrunk_pool_cannot_hold_is_told_so(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(loaded, EngineCapacity(4, 512, 1024))
    make_card_small(monkeypatch)
    found = dict(
        engine.run(
            [
                ("short", make_request(loaded, Prompt((5, 6)))),
                ("long", long_request(loaded)),
            ]
        )
    )
    assert isinstance(found["short"], Completion)
    assert isinstance(found["long"], MachineError)
    assert "the KV cache has memory for only 512" in found["long"].message


def test_the_pool_has_a_least_size_and_returns_to_the_planned_one_after_a_minute() -> None:
    now = [1000.0]
    size = PoolSize(256, clock=lambda: now[0])
    sizes = []
    for _ in range(8):
        size.halve()
        sizes.append(size.pages)
    assert sizes == [128, 64, 32, 16, 8, 4, 4, 4]
    assert not size.grow()
    now[0] += 61
    assert size.grow()
    assert size.pages == size.planned == 256
    assert not size.grow()


def test_a_tiny_pool_is_never_below_two_pages() -> None:
    size = PoolSize(2)
    size.halve()
    assert (size.pages, size.half) == (2, 2)


def test_the_pool_grows_again_when_no_answer_runs(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, requests = Engine(loaded, ROOMY), requests_for(loaded, 2)
    runner = engine._packed
    assert runner is not None
    with monkeypatch.context() as patch:
        make_card_small(patch)
        expected = texts(engine, requests)
        assert texts(engine, requests) == expected
        assert runner.prefix_cache.count == 32
    runner._pool_size._halved_at -= 100
    assert texts(engine, requests) == expected
    assert runner.prefix_cache.count == 256


def test_a_conversation_goes_on_with_a_smaller_cache_after_an_error(
    tiny_models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ChatSession(llmctl.load(tiny_models("llama"), load={"dtype": "float32"}))
    make_card_small(monkeypatch, fitting_pages=10)  # the context is 16 pages
    with pytest.raises(MachineError, match="memory ran out while generating with"):
        session.send("two plus two")
    answer = session.send("two plus two")
    assert 0 < len(answer.prompt) + len(answer.token_ids) <= 8 * 16
    assert [message.role for message in session.messages] == ["user", "assistant"]


def test_memory_that_runs_out_while_an_image_is_encoded_shrinks_the_pool_too(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(loaded, ROOMY)

    def fail(*_: Any) -> None:
        raise MachineError("memory ran out while encoding an image") from torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(packed, "forward", fail)
        engine.add(0, requests_for(loaded, 1)[0])
        with pytest.raises(MachineError, match="encoding an image"):
            engine.step()
    engine.recover()
    assert (engine.kv_tokens, engine.is_busy) == (2048, False)
    engine.recover()
    assert engine.kv_tokens == 2048, "only once for an error"
