"""Attention of packed tokens by the package flash-attn 2: one call for all sequences, with a soft cap."""

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

from llmctl.gpu.call import AttentionCall
from llmctl.gpu.varlen import PAGE_TOKENS, joined, padded, window_of, with_sinks

if TYPE_CHECKING:
    from torch import Tensor

_NEEDED = {"causal", "window_size", "softmax_scale", "softcap", "return_attn_probs"}


class FlashAttention:
    """Attention by `flash_attn_varlen_func`, or a function with its arguments.

    Args:
        function: `flash_attn_varlen_func`.
        reads_pages: Read keys and values in their pages. Otherwise copies of them are laid one after the other.
        page_tokens: Tokens of a page, if it reads pages.
    """

    def __init__(
        self, function: Callable[..., Any], *, reads_pages: bool = True, page_tokens: int = PAGE_TOKENS
    ) -> None:
        self._function, self._reads_pages = function, reads_pages
        self.page_tokens = page_tokens if reads_pages else 0
        self._has_splits = "num_splits" in signature(function).parameters  # since 2.9
        self.name = f"flash_attn ({'pages' if reads_pages else 'copies'})"

    def supports(self, call: AttentionCall) -> bool:
        """Return True if a call needs neither chunks nor tokens that see later ones."""
        return not (call.score.visible.chunk or call.visible_end is not None)

    def attend(self, call: AttentionCall) -> "Tensor":
        """Return [tokens, heads, value size]."""
        tables, score = call.tables, call.score
        paged = call.is_paged and self._reads_pages
        keys, values = (call.keys, call.values) if paged else joined(call)
        result = self._function(
            call.query,
            keys,
            padded(values, keys.shape[-1]),
            tables.query_start,
            tables.key_start,
            tables.max_query,
            tables.max_kv,
            softmax_scale=score.scale,
            causal=True,
            window_size=(window_of(call)[0], 0) if score.visible.window else (-1, -1),
            softcap=score.softcap,
            return_attn_probs=score.sinks is not None,
            **({"block_table": tables.page_table} if paged else {}),
            # a split gives other sums, and wrong ones with pages (pytorch#194167)
            **({"num_splits": 1} if self._has_splits else {}),
        )
        out: Tensor = result if score.sinks is None else with_sinks(result[0], result[1], score.sinks)
        return out[..., : values.shape[-1]]


def flash_backends() -> list[FlashAttention]:
    """Return the ways in which the installed flash-attn may attend, fastest first; none if it cannot be imported."""
    try:
        from flash_attn import flash_attn_varlen_func
    except (ImportError, OSError, RuntimeError):  # it is built for another torch
        return []
    names = signature(flash_attn_varlen_func).parameters.keys()
    if not names >= _NEEDED:
        return []
    copied = FlashAttention(flash_attn_varlen_func, reads_pages=False)
    return [FlashAttention(flash_attn_varlen_func), copied] if "block_table" in names else [copied]
