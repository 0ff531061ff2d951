"""llmctl's attention, registered with transformers: one function for ordinary passes and for packed ones.

On a CPU with llmctl's kernels every pass uses the same attention kernel. Its result for a token depends neither on the
division of a prompt into passes nor on the rest of the batch. So an answer has the same bits whether it is generated
alone, in a batch, or from cached keys and values. An ordinary pass that the kernel cannot compute (padding, static
caches) is left to torch's SDPA. A packed pass without kernels attends sequence by sequence with torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.cpu import kernels
from llmctl.transformers_compat import attention_of, has_attention_sinks, set_attention, takes_registered_attention

if TYPE_CHECKING:
    from torch import Tensor

CPU_ATTENTION = "llmctl_cpu"
PACKED_ATTENTION = "llmctl_packed"  # without a mask function, so that transformers makes no mask


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


class PackedLayout(Protocol):
    """The page tables of a packed pass, which every device needs."""

    def on(self, device: Any) -> PageTables:
        """Return the tables on a device."""


@dataclass(frozen=True)
class _SinglePages:
    """Page tables of sequences that have one page each."""

    page_table: "Tensor"
    query_start: "Tensor"
    kv_length: "Tensor"
    query_starts: tuple[int, ...]
    kv_lengths: tuple[int, ...]


@dataclass(frozen=True)
class _Score:
    """The computation of scores from q·k: a factor, a sliding window (0 for none) and a soft cap (0 for none).

    `sinks` [heads] are further logits in the softmax, which take no value; None for none.
    """

    scale: float
    window: int
    softcap: float
    sinks: "Tensor | None" = None


@dataclass(frozen=True)
class _PackedPass:
    pages: "Mapping[int, tuple[Tensor, Tensor]]"
    layout: PackedLayout


_PACKED_PASS: ContextVar[_PackedPass | None] = ContextVar("llmctl_packed_pass", default=None)


class UnsupportedAttentionError(Exception):
    """The attention of a model needs something that a packed pass cannot do."""


def use_attention(model: Any, *, is_requested: bool = False) -> None:
    """Select llmctl's attention for a model on the CPU that uses SDPA, or that cannot because of attention sinks.

    Args:
        is_requested: True if the user named the attention implementation; only SDPA is replaced then.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    replaced = {"sdpa"} if is_requested or not has_attention_sinks(model) else {"sdpa", "eager"}
    if attention_of(model.config) not in replaced or not takes_registered_attention(model):
        return
    AttentionInterface.register(CPU_ATTENTION, _attention_forward)
    AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)
    set_attention(model.config, CPU_ATTENTION)


@contextmanager
def packed_attention(model: Any, pages: "Mapping[int, tuple[Tensor, Tensor]]", layout: PackedLayout) -> Iterator[None]:
    """Make a model's layers attend to pages of keys and values inside the `with` block.

    Args:
        pages: The keys and values of each layer, [pages, tokens of a page, heads, size].
        layout: The page tables of the pass.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, _attention_forward)
    previous = attention_of(model.config)
    set_attention(model.config, PACKED_ATTENTION)
    token = _PACKED_PASS.set(_PackedPass(pages, layout))
    try:
        yield
    finally:
        _PACKED_PASS.reset(token)
        set_attention(model.config, previous)


def _attention_forward(
    module: Any, query: "Tensor", key: "Tensor", value: "Tensor", attention_mask: "Tensor | None", **arguments: Any
) -> tuple["Tensor", None]:
    """Compute attention of query [batch, heads, tokens, size], as [batch, tokens, heads, size], for transformers."""
    batch, heads, tokens, size = query.shape
    scaling = arguments.get("scaling")
    score = _Score(
        scale=size**-0.5 if scaling is None else scaling,
        window=int(arguments.get("sliding_window") or 0),
        softcap=arguments.get("softcap") or 0.0,
        sinks=arguments.get("s_aux"),
    )
    unsupported = _unsupported(module, arguments)
    packed = _PACKED_PASS.get()
    if packed is not None:
        if unsupported or key.shape[2] != tokens:
            raise UnsupportedAttentionError(unsupported or type(module).__name__)
        tables, (keys, values) = packed.layout.on(query.device), packed.pages[module.layer_idx]
    elif unsupported or arguments.get("dropout") or not _fits_kernel(query, key, attention_mask, score.window):
        if score.sinks is not None and not unsupported:
            if attention_mask is None and tokens > 1:
                attention_mask = _visible(tokens, key.shape[2], score.window, query.device)
            return _attend_with_mask(query, key, value, attention_mask, score).transpose(1, 2), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        arguments.setdefault("dropout", 0.0)
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
        return out
    else:
        tables, keys, values = _single_pages(batch, tokens, key.shape[2]), _as_pages(key), _as_pages(value)
    attended = _paged_attention(query.transpose(1, 2).reshape(-1, heads, size), keys, values, tables, score)
    return attended.view(batch, tokens, heads, -1), None


def _unsupported(module: Any, arguments: dict[str, Any]) -> str:
    """Return the features of a call that paged attention lacks; empty if it supports all of them."""
    is_causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        return f"{type(module).__name__} is not causal"
    sinks = arguments.get("s_aux")
    has_other_sinks = sinks is not None and sinks.dim() != 1
    names = ("sinks", "position_bias", *(["s_aux"] if has_other_sinks else []))
    return ", ".join(name for name in names if arguments.get(name) is not None)


def _fits_kernel(query: "Tensor", key: "Tensor", mask: "Tensor | None", window: int) -> bool:
    """Return True if each sequence's tokens are its last ones and attend to all earlier ones within the window."""
    import torch

    if query.device.type != "cpu" or (torch.is_grad_enabled() and query.requires_grad):
        return False
    tokens, key_count = query.shape[2], key.shape[2]
    if mask is None:  # a static cache has more keys than tokens, and its end is still empty
        return tokens in (1, key_count)
    verdicts: dict[tuple[int, int], bool] = mask.__dict__.setdefault("llmctl_fits_kernel", {})  # one mask, many layers
    if (window, key_count) not in verdicts:
        is_boolean = mask.dtype == torch.bool and mask.shape[-2:] == (tokens, key_count)
        verdicts[window, key_count] = is_boolean and bool((mask == _visible(tokens, key_count, window)).all())
    return verdicts[window, key_count]


@lru_cache(maxsize=8)
def _single_pages(batch: int, tokens: int, key_count: int) -> _SinglePages:
    import torch

    starts = tuple(range(0, batch * tokens + 1, tokens))
    return _SinglePages(
        page_table=torch.arange(batch, dtype=torch.int32)[:, None],
        query_start=torch.tensor(starts, dtype=torch.int32),
        kv_length=torch.full((batch,), key_count, dtype=torch.int32),
        query_starts=starts,
        kv_lengths=(key_count,) * batch,
    )


def _as_pages(states: "Tensor") -> "Tensor":
    """Return keys or values [batch, heads, tokens, size] as pages [batch, tokens, heads, size]."""
    pages = states.transpose(1, 2)
    return pages if pages.stride(3) == 1 else pages.contiguous()


def _paged_attention(query: "Tensor", keys: "Tensor", values: "Tensor", tables: PageTables, score: _Score) -> "Tensor":
    """Attend from new tokens [tokens, heads, size] to the tokens of their own sequence, which are in pages."""
    native = kernels.load() if query.device.type == "cpu" else None
    if native is None:
        return _torch_paged_attention(query, keys, values, tables, score)
    return native.paged_attention(
        query.contiguous(),
        keys,
        values,
        tables.page_table,
        tables.query_start,
        tables.kv_length,
        scale=score.scale,
        window=score.window,
        softcap=score.softcap,
        sinks=None if score.sinks is None else score.sinks.detach(),
    )


def _torch_paged_attention(
    query: "Tensor", keys: "Tensor", values: "Tensor", tables: PageTables, score: _Score
) -> "Tensor":
    import torch

    out = torch.empty(*query.shape[:2], values.shape[-1], dtype=query.dtype, device=query.device)
    for number, length in enumerate(tables.kv_lengths):
        first, end = tables.query_starts[number], tables.query_starts[number + 1]
        # tokens that no query sees are not read
        start = max(0, length - (end - first) - score.window + 1) if score.window else 0
        pages = tables.page_table[number].long()
        sequence_keys, sequence_values = (_gather(pool, pages, start, length) for pool in (keys, values))
        out[first:end] = _attend_to_one(query[first:end], sequence_keys, sequence_values, score)
    return out


def _gather(pool: "Tensor", pages: "Tensor", start: int, length: int) -> "Tensor":
    """Return one sequence's keys or values [heads, tokens, size] from token `start` on."""
    size = pool.shape[1]
    first = start // size
    needed = pages[first : -(-length // size)]
    return pool.index_select(0, needed).flatten(0, 1)[start - first * size : length - first * size].transpose(0, 1)


def _attend_to_one(query: "Tensor", keys: "Tensor", values: "Tensor", score: _Score) -> "Tensor":
    """Attend from [tokens, heads, size] to [key heads, key tokens, size], causally: the tokens are the last ones."""
    from torch.nn.functional import scaled_dot_product_attention

    tokens, key_count, window = query.shape[0], keys.shape[1], score.window
    mask = None
    if tokens > 1 and (tokens != key_count or (window and key_count > window)):
        mask = _visible(tokens, key_count, window, query.device)
    q = query.transpose(0, 1)
    if score.softcap or score.sinks is not None:
        if mask is None and tokens > 1:
            mask = _visible(tokens, key_count, 0, query.device)
        return _attend_with_mask(q, keys, values, mask, score).transpose(0, 1)
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


def _attend_with_mask(
    query: "Tensor", keys: "Tensor", values: "Tensor", mask: "Tensor | None", score: _Score
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


def _visible(tokens: int, key_count: int, window: int, device: Any = None) -> "Tensor":
    """Return the mask [tokens, key tokens] of a sequence's last tokens: each attends to earlier ones in the window."""
    import torch

    positions = torch.arange(key_count, device=device)
    distance = positions[key_count - tokens :, None] - positions
    return (distance >= 0) & (distance < window) if window else distance >= 0
