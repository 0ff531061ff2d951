"""Attention over a packed pass: by a compiled kernel where there is one, else sequence by sequence with torch."""

from typing import TYPE_CHECKING, Any

from llmctl.cpu import kernels
from llmctl.cpu.attention import visible

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.generation.engine.forward import Layout


def attend(
    query: "Tensor",
    keys: "Tensor",
    values: "Tensor",
    layout: "Layout",
    *,
    scale: float,
    window: int,
    softcap: float,
) -> "Tensor":
    """What each new token sees of its own sequence.

    Args:
        query: [tokens, heads, size].
        keys: The layer's pool, [pages, tokens of a page, key heads, size].
        values: The same for values.
        layout: Where everything lies, on the query's device.
        scale: What scores are multiplied by.
        window: A token sees this many tokens, itself included; 0 for all.
        softcap: Scores are squashed to this magnitude (Gemma 2); 0 for not.

    Returns:
        [tokens, heads, size of a value].
    """
    import torch

    compiled = kernels.load() if query.device.type == "cpu" else None
    if compiled is not None:
        return compiled.paged_attention(
            query.contiguous(),
            keys,
            values,
            layout.page_table,
            layout.query_start,
            layout.kv_length,
            scale=scale,
            window=window,
            softcap=softcap,
        )
    out = torch.empty(*query.shape[:2], values.shape[-1], dtype=query.dtype, device=query.device)
    for number, length in enumerate(layout.kv_lengths):
        first, end = layout.query_starts[number], layout.query_starts[number + 1]
        since = max(0, length - (end - first) - window + 1) if window else 0  # what no token of it sees is not read
        pages = layout.page_table[number].long()
        own_keys, own_values = (_gather(pool, pages, since, length) for pool in (keys, values))
        out[first:end] = _attend_one(
            query[first:end], own_keys, own_values, scale=scale, window=window, softcap=softcap
        )
    return out


def _gather(pool: "Tensor", pages: "Tensor", since: int, length: int) -> "Tensor":
    """One sequence's keys or values [heads, tokens, size] from token `since` on."""
    size = pool.shape[1]
    first = since // size
    needed = pages[first : -(-length // size)]
    return pool.index_select(0, needed).flatten(0, 1)[since - first * size : length - first * size].transpose(0, 1)


def _attend_one(query: "Tensor", keys: "Tensor", values: "Tensor", **how: Any) -> "Tensor":
    """[tokens, heads, size] over [key heads, seen tokens, size], causal from the end."""
    from torch.nn.functional import scaled_dot_product_attention

    tokens, seen, window = query.shape[0], keys.shape[1], how["window"]
    mask = None
    if tokens > 1 and (tokens != seen or (window and seen > window)):
        mask = visible(tokens, seen, window, query.device)
    q = query.transpose(0, 1)
    if how["softcap"]:
        capped: Tensor = _with_softcap(q, keys, values, mask, causal=mask is None and tokens > 1, **how).transpose(0, 1)
        return capped
    out = scaled_dot_product_attention(
        q[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None and tokens > 1,
        scale=how["scale"],
        enable_gqa=q.shape[0] != keys.shape[0],
    )
    attended: Tensor = out[0].transpose(0, 1)
    return attended


def _with_softcap(query: "Tensor", keys: "Tensor", values: "Tensor", mask: Any, *, causal: bool, **how: Any) -> Any:
    import torch

    groups = query.shape[0] // keys.shape[0]
    scores = query @ keys.repeat_interleave(groups, 0).transpose(1, 2) * how["scale"]
    scores = torch.tanh(scores / how["softcap"]) * how["softcap"]
    if causal:
        mask = visible(scores.shape[-2], scores.shape[-1], 0, scores.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return weights @ values.repeat_interleave(groups, 0)
