"""Attention of packed tokens to pages of keys and values: by llmctl's kernel on a CPU, otherwise by torch."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from llmctl.cpu import kernels
from llmctl.gpu.call import AttentionCall
from llmctl.gpu.paged_attention import PagedAttention

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tables:
    """The tables of sequences that have one page each; see `PackedTables`."""

    page_table: "Tensor"
    query_start: "Tensor"
    kv_length: "Tensor"
    key_start: "Tensor"
    query_starts: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    visible_end: None = None
    window_visible_end: None = None

    @property
    def max_query(self) -> int:
        """Maximum new tokens of a sequence."""
        return self.query_starts[1]

    @property
    def max_kv(self) -> int:
        """Maximum tokens of a sequence."""
        return self.kv_lengths[0]

    @property
    def key_slots(self) -> "Tensor":
        """The slots of all tokens of all sequences."""
        import torch

        return torch.arange(sum(self.kv_lengths))


@lru_cache(maxsize=8)
def single_pages(batch: int, tokens: int, key_count: int) -> Tables:
    """Return the tables of sequences that have one page each, on the CPU."""
    import torch

    starts = tuple(range(0, batch * tokens + 1, tokens))
    return Tables(
        page_table=torch.arange(batch, dtype=torch.int32)[:, None],
        query_start=torch.tensor(starts, dtype=torch.int32),
        kv_length=torch.full((batch,), key_count, dtype=torch.int32),
        key_start=torch.arange(batch + 1, dtype=torch.int32) * key_count,
        query_starts=starts,
        kv_lengths=(key_count,) * batch,
    )


def uses_kernel(query: "Tensor", otherwise: PagedAttention) -> bool:
    """Return True if llmctl's kernel computes attention here."""
    return query.device.type == "cpu" and not otherwise.replaces_kernels and kernels.load() is not None


def paged_attention(call: AttentionCall, otherwise: PagedAttention) -> "Tensor":
    """Return the attention [tokens, heads, value size] of a call on pages.

    Args:
        otherwise: Computes what llmctl's kernel does not: other devices, and a CPU without kernels.
    """
    native = kernels.load()
    if native is None or not uses_kernel(call.query, otherwise):
        return otherwise.attend(call)
    tables, score = call.tables, call.score
    return native.paged_attention(
        call.query.contiguous(),
        call.keys,
        call.values,
        tables.page_table,
        tables.query_start,
        tables.kv_length,
        scale=score.scale,
        window=score.visible.window,
        chunk=score.visible.chunk,
        softcap=score.softcap,
        sinks=None if score.sinks is None else score.sinks.detach(),
        visible_end=call.visible_end,
    )
