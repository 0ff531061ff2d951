"""The semantics of FlashAttention on the CPU: the functions of torch and flash-attn that packed passes call on GPUs.

Each checks its arguments as the C++ code does (flash_api.cpp, `mha_varlen_fwd`, torch 2.13 and flash-attn 2.8), then
computes with a matrix of all scores. `varlen_attn` also passes the arguments through torch's own function and its
registered fake implementation.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llmctl.versions import release

HALF = (torch.float16, torch.bfloat16)


def skip_without_pages() -> None:
    """Skip a test with a torch whose `varlen_attn` reads no pages, or that has none."""
    if release(torch.__version__) < (2, 13):
        pytest.skip("torch's varlen_attn reads pages since 2.13")


class ReferenceKernel:
    """FlashAttention on the CPU. Its state: the calls.

    Args:
        page_multiple: Tokens of a page must be a multiple of this.
        dtypes: The dtypes that it takes.
        broken: A feature that this build lacks: `pages`, `windows` or `sinks`.
    """

    def __init__(
        self, *, page_multiple: int = 256, dtypes: tuple[torch.dtype, ...] = HALF, broken: str | None = None
    ) -> None:
        self._page_multiple, self._dtypes, self._broken = page_multiple, dtypes, broken
        self.calls: list[dict[str, Any]] = []

    def varlen_attn(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        seqused_k: Tensor | None = None,
        block_table: Tensor | None = None,
        num_splits: int | None = None,
    ) -> Any:
        """As torch.nn.attention.varlen.varlen_attn."""
        self.calls.append({"rows": len(query), "window": window_size, "max_q": max_q, "paged": block_table is not None})
        assert block_table is None or num_splits == 1, "splits of pages are wrong (pytorch#194167)"
        assert block_table is None or seqused_k is not None
        _call_fake(
            (query, key, value, cu_seq_q, cu_seq_k),
            (max_q, max_k),
            return_aux=return_aux,
            scale=scale,
            window_size=window_size,
            enable_gqa=enable_gqa,
            seqused_k=seqused_k,
            block_table=block_table,
            num_splits=num_splits,
        )
        if cu_seq_k is None:
            raise RuntimeError("cu_seq_q and cu_seq_k must be both set or both not set")
        self._check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, seqused_k, block_table)
        lengths = seqused_k.tolist() if seqused_k is not None else cu_seq_k.diff().tolist()
        out, log_sum = self._attend(
            query, key, value, cu_seq_q, cu_seq_k, lengths, block_table, scale, window_size, 0.0
        )
        return (out, log_sum) if return_aux is not None and return_aux.lse else out

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: Tensor | None = None,
    ) -> Any:
        """As flash_attn.flash_attn_varlen_func, which takes the lengths of keys from `cu_seqlens_k`."""
        assert (dropout_p, alibi_slopes, deterministic) == (0, None, False)
        self.calls.append(
            {"rows": len(q), "window": window_size, "max_q": max_seqlen_q, "paged": block_table is not None}
        )
        self._check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, None, block_table)
        window = (window_size[0], 0) if causal else window_size
        lengths = cu_seqlens_k.diff().tolist()
        out, log_sum = self._attend(
            q, k, v, cu_seqlens_q, cu_seqlens_k, lengths, block_table, softmax_scale, window, softcap
        )
        return (out, log_sum, None) if return_attn_probs else out

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_start: Tensor,
        key_start: Tensor,
        max_q: int,
        max_k: int,
        lengths: Tensor | None,
        block_table: Tensor | None,
    ) -> None:
        tables = [query_start, key_start, *([] if lengths is None else [lengths])]
        require(all(one.dtype == query.dtype and one.dtype in self._dtypes for one in (query, key, value)), "one dtype")
        require(all(one.stride(-1) == 1 for one in (query, key, value)), "contiguous last dimensions")
        require(all(one.dtype == torch.int32 and one.is_contiguous() for one in tables), "contiguous int32 tables")
        size, batch = query.shape[-1], len(query_start) - 1
        require(size % 8 == 0 and size <= 256 and query.shape[1] % key.shape[-2] == 0, "sizes of heads")
        require(key.shape == value.shape and key.shape[-1] == size, "keys and values of one size")
        require(len(key_start) == batch + 1 and (lengths is None or len(lengths) == batch), "tables of one length")
        require(int(query_start[0]) == 0 and int(query_start[-1]) == len(query), "all queries")
        require(max_q >= int(query_start.diff().max()) and max_k >= int(key_start.diff().max()), "the maximum lengths")
        if block_table is None:
            require(key.dim() == 3 and int(key_start[-1]) == len(key), "all keys")
            return
        require(self._broken != "pages", "block_table is not supported")
        require(key.dim() == 4 and key.shape[1] % self._page_multiple == 0, "Paged KV cache block size")
        require(block_table.dtype == torch.int32 and block_table.stride(-1) == 1, "an int32 block table")
        require(block_table.shape[0] == batch, "a row of the block table for each sequence")

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_start: Tensor,
        key_start: Tensor,
        lengths: list[int],
        block_table: Tensor | None,
        scale: float | None,
        window: tuple[int, int],
        softcap: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs, and the logarithms [heads, tokens] of the sums of exponentials."""
        out, log_sums = torch.full_like(query, torch.nan), torch.full((query.shape[1], len(query)), torch.nan)
        groups = query.shape[1] // key.shape[-2]
        if self._broken == "windows":
            window = (-1, window[1])
        rows = _rows(key, value, key_start, lengths, block_table)
        for (keys, values), length, first, end in zip(rows, lengths, query_start, query_start[1:], strict=False):
            q, tokens = query[first:end].float(), int(end - first)
            k, v = keys.float().repeat_interleave(groups, 1), values.float().repeat_interleave(groups, 1)
            scores = torch.einsum("thd,shd->hts", q, k) * (query.shape[-1] ** -0.5 if scale is None else scale)
            if softcap:
                scores = torch.tanh(scores / softcap) * softcap
            distance = torch.arange(length - tokens, length)[:, None] - torch.arange(length)
            hidden = (distance > window[0]) if window[0] >= 0 else torch.zeros_like(distance, dtype=torch.bool)
            if window[1] >= 0:
                hidden |= -distance > window[1]
            scores = scores.masked_fill(hidden, -torch.inf)
            out[first:end] = torch.einsum("hts,shd->thd", scores.softmax(-1), v).to(query.dtype)
            log_sums[:, first:end] = scores.logsumexp(-1)
        return out, (log_sums * 0 if self._broken == "sinks" else log_sums)


def require(holds: bool, what: str) -> None:
    """Raise RuntimeError as TORCH_CHECK does."""
    if not holds:
        raise RuntimeError(f"{what} required")


def _rows(
    key: Tensor, value: Tensor, key_start: Tensor, lengths: list[int], block_table: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the keys and values [tokens, heads, size] of each sequence."""
    for number, length in enumerate(lengths):
        if block_table is None:
            begin = int(key_start[number])
            yield key[begin : begin + length], value[begin : begin + length]
        else:
            pages = block_table[number, : -(-length // key.shape[1])].long()
            yield key[pages].flatten(0, 1)[:length], value[pages].flatten(0, 1)[:length]


def _call_fake(tensors: tuple[Tensor | None, ...], sizes: tuple[int, int], **arguments: Any) -> None:
    """Call torch's own function on fake CUDA tensors with the arguments' shapes, strides and dtypes."""
    from torch.nn.attention.varlen import varlen_attn

    with FakeTensorMode():

        def fake(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="cuda")

        result = varlen_attn(*map(fake, tensors), *sizes, **{name: fake(one) for name, one in arguments.items()})
    out = result[0] if isinstance(result, tuple) else result
    assert out.shape == getattr(tensors[0], "shape", None)
