"""Tensors passed to the compiled library, which reads and writes through their pointers unchecked; their checks."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

from llmctl.cpu.packing import BLOCK, GROUP, Encoding

if TYPE_CHECKING:
    from torch import Tensor, dtype


class PageTables(Protocol):
    """The positions of several sequences' tokens in pages of keys and values; see `Kernels.paged_attention`."""

    @property
    def page_table(self) -> "Tensor":
        """int32 [sequences, max pages]."""

    @property
    def query_start(self) -> "Tensor":
        """int32 [sequences + 1]."""

    @property
    def kv_length(self) -> "Tensor":
        """int32 [sequences]."""

    @property
    def query_starts(self) -> Sequence[int]:
        """`query_start` as Python integers."""

    @property
    def kv_lengths(self) -> Sequence[int]:
        """`kv_length` as Python integers."""


@cache
def dtype_codes() -> "dict[dtype, int]":
    """Return the library's number of each supported dtype: `Dtype` in native/kernels.h."""
    import torch

    return {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def row_count(x: "Tensor", width: int) -> int:
    """Return the number of rows of x [..., width]."""
    if x.dtype not in dtype_codes() or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError("x must be a contiguous CPU tensor of float32, bfloat16 or float16")
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"x has shape {tuple(x.shape)}, but its last dimension must be {width}")
    return x.numel() // width if width else 0


def matrix_shape(weight: "Tensor") -> tuple[int, int]:
    """Return n and k of a weight [n, k]. Raises ValueError if the library cannot read it."""
    if weight.dtype not in dtype_codes() or weight.device.type != "cpu" or not weight.is_contiguous():
        raise ValueError("weight must be a contiguous CPU tensor of float32, bfloat16 or float16")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, but it must be a non-empty matrix")
    return weight.shape[0], weight.shape[1]


def check_vector(vector: "Tensor | None", n: int, name: str = "bias") -> None:
    """Raise ValueError unless a vector is None or has `n` elements."""
    if vector is None:
        return
    if vector.dtype not in dtype_codes() or vector.shape != (n,):
        raise ValueError(f"{name} must be a contiguous CPU tensor of {n} floats")
    if not vector.is_contiguous() or vector.device.type != "cpu":
        raise ValueError(f"{name} must be a contiguous CPU tensor of {n} floats")


def check_quantized(
    bits: int, qweight: "Tensor", scales: "Tensor", n: int, k: int, encoding: Encoding = "llmctl"
) -> None:
    """Raise ValueError unless codes and scales belong to a weight [n, k]."""
    import torch

    groups, blocks = -(-n // GROUP), -(-k // BLOCK)
    if qweight.shape != (groups, blocks, GROUP * BLOCK * bits // 8) or scales.shape != (groups, blocks, GROUP):
        shapes = f"qweight {tuple(qweight.shape)} and scales {tuple(scales.shape)}"
        raise ValueError(f"{shapes} are not {bits}-bit weights of [{n}, {k}]")
    scale_dtype = torch.uint8 if encoding == "mxfp4" else torch.float16
    if qweight.dtype != torch.uint8 or scales.dtype != scale_dtype:
        raise ValueError(f"qweight must be uint8 and scales must be {scale_dtype}")
    if not (qweight.is_contiguous() and scales.is_contiguous()) or qweight.device.type != "cpu":
        raise ValueError("qweight and scales must be contiguous CPU tensors")


def check_paged_attention(
    q: "Tensor",
    keys: "Tensor",
    values: "Tensor",
    page_table: "Tensor",
    query_start: "Tensor",
    kv_length: "Tensor",
    *,
    window: int,
    chunk: int = 0,
    visible_end: "Tensor | None" = None,
) -> None:
    """Raise ValueError if shapes, types or table entries do not match. The tables are short, so this is cheap."""
    import torch

    codes = dtype_codes()
    if q.dtype not in codes or keys.dtype not in codes or keys.dtype != values.dtype:
        raise ValueError("q, keys and values must be float32, bfloat16 or float16; keys and values must have one type")
    if q.ndim != 3 or keys.ndim != 4 or values.ndim != 4 or not q.is_contiguous():
        raise ValueError("q must be contiguous [tokens, heads, size]; keys and values [pages, tokens, heads, size]")
    if keys.shape[:3] != values.shape[:3] or keys.shape[3] != q.shape[2] or q.shape[1] % keys.shape[2]:
        shapes = f"q {tuple(q.shape)}, keys {tuple(keys.shape)} and values {tuple(values.shape)}"
        raise ValueError(f"{shapes} do not match")
    if keys.stride(3) != 1 or values.stride(3) != 1:
        raise ValueError("the last dimension of keys and values must be contiguous")
    tables = (page_table, query_start, kv_length)
    if any(table.dtype != torch.int32 or not table.is_contiguous() for table in tables):
        raise ValueError("page_table, query_start and kv_length must be contiguous int32 tensors")
    if any(tensor.device.type != "cpu" for tensor in (q, keys, values, *tables)):
        raise ValueError("all tensors must be on the CPU")
    if page_table.ndim != 2 or query_start.numel() != kv_length.numel() + 1 or len(page_table) != kv_length.numel():
        raise ValueError("for n sequences, page_table needs n rows, kv_length n entries, query_start n + 1 entries")
    starts = query_start.tolist()
    if starts[0] != 0 or starts[-1] != q.shape[0]:
        raise ValueError(f"query_start must run from 0 to {q.shape[0]}")
    pages, page_tokens, *_ = keys.shape
    lengths = kv_length.tolist()
    _check_pages(page_table, starts, lengths, pages=pages, page_tokens=page_tokens, window=window, chunk=chunk)
    check_visible_end(visible_end, starts, lengths)


def check_visible_end(visible_end: "Tensor | None", starts: Sequence[int], lengths: Sequence[int]) -> None:
    """Raise ValueError unless each token sees itself, and no token after the last one of its sequence.

    Args:
        visible_end: int32 [tokens], or None.
        starts: The index of each sequence's first token, then the number of tokens.
        lengths: The tokens of each sequence, including earlier ones.
    """
    import torch

    if visible_end is None:
        return
    if visible_end.dtype != torch.int32 or not visible_end.is_contiguous() or visible_end.numel() != starts[-1]:
        raise ValueError("visible_end must be a contiguous int32 tensor with an entry for each token")
    ends = visible_end.tolist()
    for first, end, length in zip(starts, starts[1:], lengths, strict=False):
        position = length - (end - first)
        if any(not position + n < seen <= length for n, seen in enumerate(ends[first:end])):
            raise ValueError("a token must see itself, and no token after the last one of its sequence")


def _check_pages(
    page_table: "Tensor",
    starts: list[int],
    lengths: list[int],
    *,
    pages: int,
    page_tokens: int,
    window: int,
    chunk: int,
) -> None:
    capacity = page_table.shape[1] * page_tokens
    for table, first, end, length in zip(page_table.tolist(), starts, starts[1:], lengths, strict=False):
        if not 0 <= end - first <= length <= capacity:
            raise ValueError(f"{end - first} queries of {length} tokens do not fit into a table of {capacity} tokens")
        position = length - (end - first)
        first_seen = max(0, position - window + 1) if window else position // chunk * chunk if chunk else 0
        used = table[first_seen // page_tokens : -(-length // page_tokens)] if end > first else []
        if used and not 0 <= min(used) <= max(used) < pages:
            raise ValueError(f"page_table has an entry outside of the {pages} pages")
