"""Graphs that exist share the memory of their intermediate results; after they are gone, new memory is taken."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from llmctl.gpu.graphs import CudaGraphRecorder, Recording


class Graph:
    """A graph with the rules of torch's allocator: memory of graphs that are all gone is refused."""

    holders: dict[int, int] = {}  # noqa: RUF012 (cleared by the fixture)

    def __init__(self) -> None:
        self.memory = 0

    def pool(self) -> int:
        return self.memory

    def replay(self) -> None:
        """Do nothing."""

    def begin(self, memory: int | None) -> None:
        self.memory = max(self.holders, default=0) + 1 if memory is None else memory
        if memory is not None and not self.holders[memory]:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.holders[self.memory] = self.holders.get(self.memory, 0) + 1

    def __del__(self) -> None:
        if self.memory:
            self.holders[self.memory] -= 1


class Stream:
    def wait_stream(self, _: Any) -> None:
        """Do nothing."""


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Recording]:
    """Return a function that records a graph, with stand-ins for torch's graphs and streams."""
    Graph.holders.clear()

    @contextlib.contextmanager
    def graph(one: Graph, *, pool: int | None, **_: Any) -> Iterator[None]:
        one.begin(pool)
        yield

    for name, stand_in in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "device": contextlib.nullcontext,
        "stream": contextlib.nullcontext,
        "set_stream": lambda _: None,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    recorder = CudaGraphRecorder("cuda:0")
    return lambda: recorder.record(lambda: torch.zeros(1))


def test_graphs_share_memory_and_a_new_pool_follows_after_all_of_them_are_gone(record: Callable[[], Recording]) -> None:
    first, second = record(), record()
    assert Graph.holders == {1: 2}
    del first, second
    gc.collect()
    assert Graph.holders == {1: 0}
    third = record()
    assert Graph.holders == {1: 0, 2: 1}
    assert third.replay().shape == (1,)
