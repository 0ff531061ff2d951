"""Attention of packed tokens to pages of keys and values, by llmctl's kernel or by torch."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from llmctl.cpu import kernels
from llmctl.cpu.tensors import PageTables
from llmctl.loading.attention_mask import VisibleTokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tables:
    """Page tables; see `PageTables`."""

    page_table: "Tensor"
    query_start: "Tensor"
    kv_length: "Tensor"
    query_starts: tuple[int, ...]
    kv_lengths: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """The computation of scores from q·k.

    Attributes:
        scale: The factor of q·k.
        visible: The tokens that each token sees.
        softcap: Scores become softcap * tanh(score / softcap); 0 leaves them unchanged.
        sinks: [heads], further logits in the softmax, which take no value; None for none.
    """

    scale: float
    visible: VisibleTokens
    softcap: float = 0.0
    sinks: "Tensor | None" = None


@lru_cache(maxsize=8)
def single_pages(batch: int, tokens: int, key_count: int) -> Tables:
    """Return the tables of sequences that have one page each."""
    import torch

    starts = tuple(range(0, batch * tokens + 1, tokens))
    return Tables(
        page_table=torch.arange(batch, dtype=torch.int32)[:, None],
        query_start=torch.tensor(starts, dtype=torch.int32),
        kv_length=torch.full((batch,), key_count, dtype=torch.int32),
        query_starts=starts,
        kv_lengths=(key_count,) * batch,
    )


def paged_attention(
    query: "Tensor",
    keys: "Tensor",
    values: "Tensor",
    tables: PageTables,
    score: Score,
    *,
    visible_end: "Tensor | None" = None,
) -> "Tensor":
    """Attend from new tokens [tokens, heads, size] to the tokens of their own sequence, which are in pages.

    Args:
        visible_end: int32 [tokens], the end of the tokens that each token sees; None for the token itself.
    """
    native = kernels.load() if query.device.type == "cpu" else None
    if native is None:
        return _torch_paged_attention(query, keys, values, tables, score, visible_end)
    return native.paged_attention(
        query.contiguous(),
        keys,
        values,
        tables.page_table,
        tables.query_start,
        tables.kv_length,
        scale=score.scale,
        window=score.visible.window,
        chunk=score.visible.chunk,
        softcap=score.softcap,
        sinks=None if score.sinks is None else score.sinks.detach(),
        visible_end=visible_end,
    )


def _torch_paged_attention(
    query: "Tensor", keys: "Tensor", values: "Tensor", tables: PageTables, score: Score, visible_end: "Tensor | None"
) -> "Tensor":
    import torch

    out = torch.empty(*query.shape[:2], values.shape[-1], dtype=query.dtype, device=query.device)
    for number, length in enumerate(tables.kv_lengths):
        first, end = tables.query_starts[number], tables.query_starts[number + 1]
        start = score.visible.first_visible(length - (end - first))  # tokens that no query sees are not read
        pages = tables.page_table[number].long()
        sequence_keys, sequence_values = (_gather(pool, pages, start, length) for pool in (keys, values))
        ends = None if visible_end is None else visible_end[first:end] - start
        out[first:end] = _attend_to_one(query[first:end], sequence_keys, sequence_values, score, ends)
    return out


def _gather(pool: "Tensor", pages: "Tensor", start: int, length: int) -> "Tensor":
    """Return one sequence's keys or values [heads, tokens, size] from token `start` on."""
    size = pool.shape[1]
    first = start // size
    needed = pages[first : -(-length // size)]
    return pool.index_select(0, needed).flatten(0, 1)[start - first * size : length - first * size].transpose(0, 1)


def _attend_to_one(
    query: "Tensor", keys: "Tensor", values: "Tensor", score: Score, visible_end: "Tensor | None" = None
) -> "Tensor":
    """Attend from [tokens, heads, size] to [key heads, key tokens, size], causally: the tokens are the last ones.

    Args:
        visible_end: [tokens], the end of the keys that each token sees; None for the token itself.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tokens, key_count = query.shape[0], keys.shape[1]
    mask = None
    if tokens > 1 and (tokens != key_count or visible_end is not None or score.visible.hides_any(key_count)):
        mask = score.visible.mask(tokens, key_count, query.device)
    if mask is not None and visible_end is not None:
        positions = torch.arange(key_count, device=query.device)
        later = positions > positions[key_count - tokens :, None]
        mask = mask | (later & (positions < visible_end[:, None]))
    q = query.transpose(0, 1)
    if score.softcap or score.sinks is not None:
        if mask is None and tokens > 1:
            mask = score.visible.mask(tokens, key_count, query.device)
        return attend_with_mask(q, keys, values, mask, score).transpose(0, 1)
    out = scaled_dot_product_attention(
        q[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None and tokens > 1,
        scale=score.scale,
        enable_gqa=q.shape[0] != keys.shape[0],
    )
    attended: Tensor = out[0].transpose(0, 1)
    return attended


def attend_with_mask(
    query: "Tensor", keys: "Tensor", values: "Tensor", mask: "Tensor | None", score: Score
) -> "Tensor":
    """Attend from [..., heads, tokens, size] with soft cap and sinks, which torch's own attention lacks."""
    import torch

    groups = query.shape[-3] // keys.shape[-3]
    scores = query @ keys.repeat_interleave(groups, -3).transpose(-1, -2) * score.scale
    if score.softcap:
        scores = torch.tanh(scores / score.softcap) * score.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if score.sinks is not None:
        sinks = score.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return weights[..., : keys.shape[-2]] @ values.repeat_interleave(groups, -3)
