"""Attention of packed tokens by torch's SDPA, sequence by sequence: it runs everywhere and has every feature.

torch computes attention by a fused kernel or, where none takes the arguments, with a matrix of all scores: 17 GB for a
prompt of 32,000 tokens. No fused kernel takes `enable_gqa` below compute capability 8.0, or together with a mask, so
the heads of keys and values are repeated there.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from llmctl.gpu.call import AttentionCall
from llmctl.loading.attention_mask import Score, VisibleTokens
from llmctl.transformers_compat import group_heads_only_where

if TYPE_CHECKING:
    from torch import Tensor

_FUSED_CAPABILITY = (8, 0)  # of FlashAttention, the kernel that takes grouped heads in 16 bits (sdp_utils.cpp)
_FUSED_SIZE = 256
_COPIED_BYTES = 128 << 20  # of keys, and as many of values, in one call for several sequences


class SdpaAttention:
    """Attention by torch's SDPA, sequence by sequence."""

    name = "sdpa"
    page_tokens = 0

    def supports(self, call: AttentionCall) -> bool:
        """Return True: masks can express everything."""
        return True

    def attend(self, call: AttentionCall) -> "Tensor":
        """Return [tokens, heads, value size]."""
        import torch

        query, tables = call.query, call.tables
        if call.is_paged and tables.max_query == 1 and _can_decode_together(call):
            return _decode_together(call)
        out = torch.empty(*query.shape[:2], call.values.shape[-1], dtype=query.dtype, device=query.device)
        begin = 0
        for number, length in enumerate(tables.kv_lengths):
            first, end = tables.query_starts[number], tables.query_starts[number + 1]
            start = call.score.visible.first_visible(length - (end - first))  # tokens that no query sees are not read
            if call.is_paged:
                pages = tables.page_table[number].long()
                keys, values = (_gather(pool, pages, start, length) for pool in (call.keys, call.values))
            else:
                rows = slice(begin + start, begin + length)
                keys, values = call.keys[rows].transpose(0, 1), call.values[rows].transpose(0, 1)
            ends = None if call.visible_end is None else call.visible_end[first:end] - start
            out[first:end] = attend_to_one(query[first:end], keys, values, call.score, ends)
            begin += length
        return out


def _can_decode_together(call: AttentionCall) -> bool:
    """Return True on a GPU, if torch's SDPA has everything that a decode step needs."""
    features = call.score.softcap or call.score.sinks is not None or call.visible_end is not None
    return device_type(call.query) != "cpu" and not features


def _decode_together(call: AttentionCall) -> "Tensor":
    """Attend from one new token of each sequence, for as many sequences at a time as their copied keys have room.

    The heads of a group are laid out as tokens, so that they share keys and values without `enable_gqa`.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tables, (page_tokens, key_heads, size) = call.tables, call.keys.shape[1:]
    pages = -(-max(tables.kv_lengths) // page_tokens)
    width = pages * page_tokens
    together = max(1, _COPIED_BYTES // (width * key_heads * size * call.keys.element_size()))
    position, outputs = torch.arange(width, device=call.query.device), []
    for first in range(0, len(tables.kv_lengths), together):
        rows = slice(first, first + together)
        table, lengths = tables.page_table[rows, :pages].long(), tables.kv_length[rows, None]
        keys, values = (pool[table].flatten(1, 2).transpose(1, 2) for pool in (call.keys, call.values))
        visible = call.score.visible.between(lengths - 1, position)[:, None, None]
        query = call.query[rows].reshape(len(table), key_heads, -1, size)
        out = scaled_dot_product_attention(query, keys, values, attn_mask=visible, scale=call.score.scale)
        outputs.append(out.flatten(1, 2))
    return torch.cat(outputs)


def _gather(pool: "Tensor", pages: "Tensor", start: int, length: int) -> "Tensor":
    """Return one sequence's keys or values [heads, tokens, size] from token `start` on."""
    size = pool.shape[1]
    first = start // size
    needed = pages[first : -(-length // size)]
    return pool.index_select(0, needed).flatten(0, 1)[start - first * size : length - first * size].transpose(0, 1)


def attend_to_one(
    query: "Tensor", keys: "Tensor", values: "Tensor", score: Score, visible_end: "Tensor | None" = None
) -> "Tensor":
    """Attend from [tokens, heads, size] to [key heads, key tokens, size], causally: the tokens are the last ones.

    Args:
        visible_end: [tokens], the end of the keys that each token sees; None for the token itself.
    """
    from torch.nn.functional import scaled_dot_product_attention

    tokens, key_count = query.shape[0], keys.shape[1]
    hides = visible_end is not None or score.visible.hides_any(key_count)
    q = query.transpose(0, 1)
    if score.softcap or score.sinks is not None:
        mask = _mask(tokens, key_count, score, visible_end, q.device) if tokens > 1 else None
        return attend_with_mask(q, keys, values, mask, score).transpose(0, 1)
    mask = None
    if tokens > 1 and hides:
        mask = _mask(tokens, key_count, score, visible_end, q.device)
    elif tokens > 1 and tokens != key_count:
        mask = _lower_right(tokens, key_count, q)
    is_grouped = q.shape[0] != keys.shape[0]
    if is_grouped and not takes_grouped_heads(query, values, has_mask=mask is not None):
        groups = q.shape[0] // keys.shape[0]
        keys, values, is_grouped = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0), False
    out = scaled_dot_product_attention(
        q[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None and tokens > 1,
        scale=score.scale,
        enable_gqa=is_grouped,
    )
    attended: Tensor = out[0].transpose(0, 1)
    return attended


def takes_grouped_heads(query: "Tensor", values: "Tensor", *, has_mask: bool) -> bool:
    """Return True if a fused kernel of torch takes keys and values with fewer heads than the query."""
    if device_type(query) != "cuda":
        return device_type(query) == "cpu"
    fits = query.shape[-1] == values.shape[-1] <= _FUSED_SIZE and query.element_size() == 2
    return fits and not has_mask and cuda_capability(query.device) >= _FUSED_CAPABILITY


@cache
def repeat_heads_where_needed() -> None:
    """Let transformers' own SDPA repeat the heads of keys and values on cards whose kernels do not group them."""

    def takes(key: "Tensor", value: "Tensor") -> bool:
        return device_type(key) != "cuda" or takes_grouped_heads(key, value, has_mask=False)

    group_heads_only_where(takes)


def device_type(tensor: "Tensor") -> str:
    """Return the type of a tensor's device."""
    return str(tensor.device.type)


def cuda_capability(device: Any) -> tuple[int, int]:
    """Return the compute capability of a CUDA or ROCm device."""
    import torch

    return torch.cuda.get_device_capability(device)


def _lower_right(tokens: int, key_count: int, query: "Tensor") -> Any:
    """Return the causal mask of a prompt's chunk after the first. On CUDA it is no tensor, so that kernels take it."""
    if device_type(query) != "cuda":
        return VisibleTokens().mask(tokens, key_count, query.device)
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(tokens, key_count)


def _mask(tokens: int, key_count: int, score: Score, visible_end: "Tensor | None", device: Any) -> "Tensor":
    """Return the mask [tokens, key tokens]; True means visible."""
    import torch

    mask = score.visible.mask(tokens, key_count, device)
    if visible_end is None:
        return mask
    positions = torch.arange(key_count, device=device)
    later = positions > positions[key_count - tokens :, None]
    return mask | (later & (positions < visible_end[:, None]))


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
