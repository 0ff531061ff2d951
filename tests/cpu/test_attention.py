"""Paged attention: correct up to rounding, and bitwise equal for every split of a prompt and every batch."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from llmctl.cpu.kernels import Kernels

TYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
PAGE_TOKENS = 16


@dataclass(frozen=True)
class Heads:
    query: int = 4
    key: int = 2
    width: int = 24
    value_width: int = 40


@dataclass(frozen=True)
class Sequence:
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def sequence(length: int, queries: int, heads: Heads, *, dtype: torch.dtype, seed: int = 0) -> Sequence:
    made = torch.Generator().manual_seed(seed + length)
    q = torch.randn((length, heads.query, heads.width), generator=made)[length - queries :]
    k = torch.randn((length, heads.key, heads.width), generator=made)
    v = torch.randn((length, heads.key, heads.value_width), generator=made)
    return Sequence(q.to(dtype), k.to(dtype), v.to(dtype))


def attend(kernels: Kernels, sequences: list[Sequence], **how: Any) -> list[torch.Tensor]:
    """Put keys and values into pages in random order and compute attention. All slots that must not be read are NaN."""
    counts = [-(-len(one.keys) // PAGE_TOKENS) for one in sequences]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(7)).int()
    first = sequences[0]
    pools = [
        torch.full((sum(counts), PAGE_TOKENS, *t.shape[1:]), torch.nan, dtype=t.dtype)
        for t in (first.keys, first.values)
    ]
    table, place = torch.full((len(sequences), max(counts)), -1, dtype=torch.int32), 0
    for row, (one, count) in enumerate(zip(sequences, counts, strict=True)):
        table[row, :count] = order[place : place + count]
        place += count
        for position in range(len(one.keys)):
            block, slot = table[row, position // PAGE_TOKENS], position % PAGE_TOKENS
            pools[0][block, slot], pools[1][block, slot] = one.keys[position], one.values[position]
    starts = torch.tensor([0, *torch.tensor([len(one.queries) for one in sequences]).cumsum(0)], dtype=torch.int32)
    lengths = torch.tensor([len(one.keys) for one in sequences], dtype=torch.int32)
    q = torch.cat([one.queries for one in sequences])
    out = kernels.paged_attention(q, *pools, table, starts, lengths, **how)
    return list(out.split([len(one.queries) for one in sequences]))


def reference(
    one: Sequence,
    *,
    scale: float,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    length, queries = len(one.keys), len(one.queries)
    group = one.queries.shape[1] // one.keys.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (one.keys, one.values))
    scores = torch.einsum("qhd,khd->hqk", one.queries.double(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    at, key = torch.arange(length - queries, length)[:, None], torch.arange(length)[None]
    seen = (key <= at) & ((at - key < window) if window else True) & ((at // chunk == key // chunk) if chunk else True)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, queries, 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :length], v)


def relative_error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm()).item()


OPTIONS = [
    {},
    {"window": 5},
    {"window": 70},
    {"softcap": 2.0},
    {"window": 33, "softcap": 30.0},
    {"chunk": 40},
    {"chunk": 128},
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("how", OPTIONS, ids=str)
def test_every_sequence_attends_to_its_own_tokens(kernels: Kernels, how: dict[str, float], dtype: torch.dtype) -> None:
    for heads in (Heads(), Heads(6, 1, 64, 64), Heads(3, 3, 128, 128), Heads(8, 2, 16, 8)):
        sizes = ((1, 1), (300, 1), (65, 65), (200, 37), (64, 3), (17, 0))
        sequences = [sequence(length, queries, heads, dtype=dtype) for length, queries in sizes]
        for one, out in zip(sequences, attend(kernels, sequences, scale=0.3, **how), strict=True):
            if len(one.queries):
                assert relative_error(out, reference(one, scale=0.3, **how)) < ROUNDING[dtype], (heads, len(one.keys))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("how", OPTIONS, ids=str)
def test_a_query_gets_the_same_bits_however_its_prompt_is_cut_and_batched(
    kernels: Kernels, how: dict[str, float], dtype: torch.dtype
) -> None:
    heads, length = Heads(8, 2, 64, 64), 150
    whole = sequence(length, length, heads, dtype=dtype)
    neighbours = [sequence(n, n, heads, dtype=dtype, seed=3) for n in (3, 90)]
    together = attend(kernels, [neighbours[0], whole, neighbours[1]], scale=0.1, **how)[1]
    threads = torch.get_num_threads()
    try:
        for end, queries in ((1, 1), (64, 64), (65, 1), (100, 36), (150, 50), (150, 1)):
            torch.set_num_threads(1 + queries % 3)
            part = Sequence(whole.queries[end - queries : end], whole.keys[:end], whole.values[:end])
            assert torch.equal(attend(kernels, [part], scale=0.1, **how)[0], together[end - queries : end]), end
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [0, 33])
def test_a_sink_of_a_head_takes_a_share_of_the_softmax(kernels: Kernels, window: int, dtype: torch.dtype) -> None:
    heads = Heads(6, 2, 64, 64)
    sinks = torch.tensor([-30.0, -1.0, 0.0, 2.0, 8.0, 60.0]).to(dtype)
    how = {"scale": 0.3, "window": window, "sinks": sinks}
    sequences = [sequence(length, queries, heads, dtype=dtype) for length, queries in ((1, 1), (150, 150), (90, 3))]
    together = attend(kernels, sequences, **how)
    for one, out in zip(sequences, together, strict=True):
        expected = reference(one, **how)
        for head in range(5):
            assert relative_error(out[:, head], expected[:, head]) < 2 * ROUNDING[dtype], head
        assert out[:, 5].float().abs().max() < 1e-10  # the sink of the last head takes everything
    whole = sequences[1]
    part = Sequence(whole.queries[70:100], whole.keys[:100], whole.values[:100])
    assert torch.equal(attend(kernels, [part], **how)[0], together[1][70:100])


def test_sinks_must_have_one_number_per_head(best: Kernels) -> None:
    one = sequence(3, 1, Heads(), dtype=torch.float32)
    with pytest.raises(ValueError, match="sinks must be"):
        attend(best, [one], scale=1.0, sinks=torch.zeros(3))


def test_the_kv_cache_may_have_any_strides(best: Kernels) -> None:
    heads = Heads(4, 2, 32, 32)
    one = sequence(PAGE_TOKENS, 5, heads, dtype=torch.float32)
    by_head = torch.stack([one.keys.transpose(0, 1), one.values.transpose(0, 1)])  # [2, heads, slots, width]
    pool = by_head.permute(0, 2, 1, 3)[:, None]
    numbers = (torch.tensor(n, dtype=torch.int32) for n in ([[0]], [0, 5], [PAGE_TOKENS]))
    out = best.paged_attention(one.queries, pool[0], pool[1], *numbers, scale=1.0)
    assert relative_error(out, reference(one, scale=1.0)) < 3e-6


def test_tables_with_entries_out_of_range_are_refused(best: Kernels) -> None:
    q, pool = torch.zeros(2, 4, 8), torch.zeros(3, PAGE_TOKENS, 2, 8)

    def attend_with(
        table: object = ((0, 1),), start: object = (0, 2), length: object = (20,), query: object = q
    ) -> None:
        numbers = (torch.tensor(n, dtype=torch.int32) for n in (table, start, length))
        best.paged_attention(query, pool, pool, *numbers, scale=1.0)

    attend_with()
    for wrong in (
        {"length": (33,)},
        {"length": (1,)},
        {"start": (0, 3)},
        {"start": (1, 2)},
        {"table": ((0, 3),)},
        {"table": ((-1, 0),)},
        {"table": ((0, 1), (0, 1))},
        {"query": torch.zeros(2, 3, 8)},
        {"query": torch.zeros(2, 4, 9)},
        {"query": torch.zeros(2, 4, 8, dtype=torch.float64)},
    ):
        with pytest.raises(ValueError, match=r"fit|match|must|needs|outside"):
            attend_with(**wrong)
