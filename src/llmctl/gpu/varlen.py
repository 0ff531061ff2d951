"""Attention of packed tokens by torch's own FlashAttention, `torch.nn.attention.varlen`: one call for all sequences.

What releases of torch can do was read in their sources: windows since 2.11, grouped heads since 2.12, and pages through
`block_table` since 2.13 with FlashAttention-2 (pages of 256 tokens, and `cu_seq_k` must be given), since 2.12 with
FlashAttention-3 (where `cu_seq_k` must not be given). ROCm has no pages, and no windows in some releases. So each way
is tried once on the device; see trial.py.

A window of w tokens includes the token itself in llmctl and transformers; here (left, right) counts the others.
"""

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

from llmctl.gpu.call import AttentionCall

if TYPE_CHECKING:
    from torch import Tensor

PAGE_TOKENS = 256  # flash_api.cpp: "Paged KV cache block size must be divisible by 256"
_NEEDED = {"window_size", "scale"}
_FOR_PAGES = {"seqused_k", "block_table", "num_splits"}


class VarlenAttention:
    """Attention by `varlen_attn` of torch, or a function with its arguments.

    Args:
        function: `varlen_attn`.
        reads_pages: Read keys and values in their pages. Otherwise copies of them are laid one after the other.
        gives_key_start: Pass `cu_seq_k` together with pages.
        page_tokens: Tokens of a page, if it reads pages.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        reads_pages: bool = True,
        gives_key_start: bool = True,
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        self._function, self._reads_pages, self._gives_key_start = function, reads_pages, gives_key_start
        self.page_tokens = page_tokens if reads_pages else 0
        self._names = signature(function).parameters.keys()
        kind = "pages" if reads_pages and gives_key_start else "pages, FlashAttention-3" if reads_pages else "copies"
        self.name = f"varlen_attn ({kind})"

    def supports(self, call: AttentionCall) -> bool:
        """Return True if a call needs neither chunks, a soft cap nor tokens that see later ones."""
        if call.score.sinks is not None and "return_aux" not in self._names:
            return False
        return not (call.score.visible.chunk or call.score.softcap or call.visible_end is not None)

    def attend(self, call: AttentionCall) -> "Tensor":
        """Return [tokens, heads, value size]."""
        tables, score = call.tables, call.score
        paged = call.is_paged and self._reads_pages
        keys, values = (call.keys, call.values) if paged else joined(call)
        pages = {"seqused_k": tables.kv_length, "block_table": tables.page_table, "num_splits": 1} if paged else {}
        out = self._function(
            call.query,
            keys,
            padded(values, keys.shape[-1]),
            tables.query_start,
            tables.key_start if self._gives_key_start or not paged else None,
            tables.max_query,
            tables.max_kv,
            scale=score.scale,
            window_size=window_of(call),
            **({"enable_gqa": call.is_grouped} if "enable_gqa" in self._names else {}),
            **pages,
            **self._aux(score.sinks),
        )
        attended: Tensor = out if score.sinks is None else with_sinks(out[0], out[1], score.sinks)
        return attended[..., : values.shape[-1]]

    def _aux(self, sinks: "Tensor | None") -> dict[str, Any]:
        if sinks is None:
            return {}
        from torch.nn.attention.varlen import AuxRequest

        return {"return_aux": AuxRequest(lse=True)}


def varlen_backends() -> list[VarlenAttention]:
    """Return the ways in which this torch may attend, the fastest first."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before 2.10
        return []
    return ways_of(varlen_attn)


def ways_of(function: Callable[..., Any]) -> list[VarlenAttention]:
    """Return the ways in which a release's `varlen_attn` may attend, by its arguments."""
    names = signature(function).parameters.keys()
    if not names >= _NEEDED:
        return []
    paged = [VarlenAttention(function), VarlenAttention(function, gives_key_start=False)]
    copied = VarlenAttention(function, reads_pages=False)
    return [*paged, copied] if names >= _FOR_PAGES else [copied]


def window_of(call: AttentionCall) -> tuple[int, int]:
    """Return the window (left, right) of FlashAttention, which counts the other tokens; -1 means all.

    A pass with one new token for each sequence needs no causal mask, and without one the kernel reads the keys once for
    all heads of a group (flash_api.cpp, `seqlenq_ngroups_swapped`).
    """
    window = call.score.visible.window
    if call.tables.max_query == 1 and not window:
        return (-1, -1)
    return (window - 1 if window else -1, 0)


def joined(call: AttentionCall) -> "tuple[Tensor, Tensor]":
    """Return the keys and values of all sequences, one after the other: [key tokens, heads, size]."""
    if not call.is_paged:
        return call.keys, call.values
    slots = call.tables.key_slots
    return call.keys.flatten(0, 1).index_select(0, slots), call.values.flatten(0, 1).index_select(0, slots)


def padded(values: "Tensor", size: int) -> "Tensor":
    """Return values with as many numbers as keys, as FlashAttention needs."""
    from torch.nn.functional import pad

    return values if values.shape[-1] == size else pad(values, (0, size - values.shape[-1]))


def with_sinks(out: "Tensor", log_sum: "Tensor", sinks: "Tensor") -> "Tensor":
    """Return attention [tokens, heads, size] as if the softmax had a further logit without a value for each head.

    The further logit multiplies all weights by sum / (sum + exp(sink)), which is sigmoid(log(sum) - sink).

    Args:
        log_sum: [heads, tokens], the logarithm of the sum of the exponentials of the scores.
    """
    import torch

    share = torch.sigmoid(log_sum.transpose(0, 1).float() - sinks.float())
    return (out.float() * share[..., None]).to(out.dtype)
