"""llmctl's attention, registered with transformers: one function for ordinary passes and for packed ones.

On a CPU with llmctl's kernels every pass uses the same attention kernel. Its result for a token depends neither on the
division of a prompt into passes nor on the rest of the batch. So an answer has the same bits whether it is generated
alone, in a batch, or from cached keys and values. An ordinary pass that the kernel cannot compute (padding, static
caches) is left to torch's SDPA. A packed pass without kernels attends sequence by sequence with torch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.gpu.call import AttentionCall, PackedTables
from llmctl.gpu.paged_attention import PagedAttention
from llmctl.gpu.sdpa import attend_with_mask
from llmctl.loading.attention_mask import (
    Score,
    UnknownMask,
    UnsupportedAttentionError,
    VisibleTokens,
    visible_tokens,
)
from llmctl.loading.paged_attention import paged_attention, single_pages, uses_kernel
from llmctl.transformers_compat import (
    attention_of,
    has_sinks_or_softcap,
    set_attention,
    takes_registered_attention,
)

if TYPE_CHECKING:
    from torch import Tensor

CPU_ATTENTION = "llmctl_cpu"
PACKED_ATTENTION = "llmctl_packed"
# Arguments of an attention call that are used here, or that do not change its result.
_KNOWN_ARGUMENTS = {
    *("scaling", "sliding_window", "softcap", "s_aux", "dropout", "is_causal", "position_ids", "cache_position"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "logits_to_keep", "layer_idx"),
    *("position_embeddings", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
}


class PackedLayout(Protocol):
    """The page tables of a packed pass, which every device needs."""

    def on(self, device: Any) -> PackedTables:
        """Return the tables on a device."""


class KeysChangedError(UnsupportedAttentionError):
    """A layer changes keys or values after they were cached, so that it cannot attend to the cached ones."""


@dataclass(frozen=True)
class PackedPass:
    """One packed pass, module by module.

    Attributes:
        pages: The keys and values of each layer, [pages, tokens of a page, heads, size].
        layout: The page tables of the pass.
        attention: Computes what llmctl's kernel does not.
        gathers: True if the cache returns all keys of all sequences, one after the other, and layers attend to what
            they make of those (latent attention). False if layers attend to the pages.
        written: The layer of the keys and values that the cache returned, by their identities.
    """

    pages: "Mapping[int, tuple[Tensor, Tensor]]"
    layout: PackedLayout
    attention: PagedAttention
    gathers: bool = False
    written: "dict[tuple[int, int], tuple[int, Tensor, Tensor]]" = field(default_factory=dict)

    def record(self, layer: int, keys: "Tensor", values: "Tensor") -> None:
        """Record the keys and values that the cache returns to a layer."""
        self.written[id(keys), id(values)] = (layer, keys, values)

    def pages_of(self, keys: "Tensor", values: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the pages that hold these keys and values. Raise KeysChangedError if none do."""
        if (id(keys), id(values)) not in self.written:
            raise KeysChangedError("keys or values that are not those of the cache")
        return self.pages[self.written[id(keys), id(values)][0]]


_PACKED_PASS: ContextVar[PackedPass | None] = ContextVar("llmctl_packed_pass", default=None)


def use_attention(model: Any, *, is_requested: bool = False) -> None:
    """Select llmctl's attention for a model on the CPU that uses SDPA, or that cannot because of sinks or a soft cap.

    Args:
        is_requested: True if the user named the attention implementation; only SDPA is replaced then.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    replaced = {"sdpa"} if is_requested or not has_sinks_or_softcap(model) else {"sdpa", "eager"}
    if attention_of(model.config) not in replaced or not takes_registered_attention(model):
        return
    AttentionInterface.register(CPU_ATTENTION, _attention_forward)
    AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)
    set_attention(model.config, CPU_ATTENTION)


@contextmanager
def packed_attention(model: Any, packed: PackedPass) -> Iterator[None]:
    """Make a model's layers attend as a packed pass needs inside the `with` block."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED_ATTENTION, _attention_forward)
    AttentionMaskInterface.register(PACKED_ATTENTION, visible_tokens)
    previous = attention_of(model.config)
    set_attention(model.config, PACKED_ATTENTION)
    token = _PACKED_PASS.set(packed)
    try:
        yield
    finally:
        _PACKED_PASS.reset(token)
        set_attention(model.config, previous)


def _attention_forward(
    module: Any, query: "Tensor", key: "Tensor", value: "Tensor", attention_mask: Any, **arguments: Any
) -> tuple["Tensor", None]:
    """Compute attention of query [batch, heads, tokens, size], as [batch, tokens, heads, size], for transformers."""
    batch, heads, tokens, size = query.shape
    scaling = arguments.get("scaling")
    score = Score(
        scale=size**-0.5 if scaling is None else scaling,
        visible=VisibleTokens(window=int(arguments.get("sliding_window") or 0)),
        softcap=arguments.get("softcap") or 0.0,
        sinks=arguments.get("s_aux"),
    )
    unsupported = _unsupported(module, arguments)
    packed = _PACKED_PASS.get()
    if packed is not None:
        if unsupported:
            raise UnsupportedAttentionError(unsupported)
        return _attend_packed(packed, query, key, value, attention_mask, score)[None], None
    if unsupported or arguments.get("dropout") or not _fits_kernel(query, key, attention_mask, score.visible):
        if (score.sinks is not None or score.softcap) and not unsupported:
            if attention_mask is None and tokens > 1:
                attention_mask = score.visible.mask(tokens, key.shape[2], query.device)
            return attend_with_mask(query, key, value, attention_mask, score).transpose(1, 2), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        arguments.setdefault("dropout", 0.0)
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
        return out
    rows = query.transpose(1, 2).reshape(-1, heads, size)
    tables = single_pages(batch, tokens, key.shape[2])
    attended = paged_attention(AttentionCall(rows, _as_pages(key), _as_pages(value), tables, score), PagedAttention())
    return attended.view(batch, tokens, heads, -1), None


def _attend_packed(
    packed: PackedPass, query: "Tensor", key: "Tensor", value: "Tensor", mask: Any, score: Score
) -> "Tensor":
    """Attend from packed tokens [1, heads, tokens, size]; return [tokens, heads, value size]."""
    if isinstance(mask, VisibleTokens):  # as in torch's SDPA, the mask counts, not the argument `sliding_window`
        score = replace(score, visible=mask)
    elif mask is not None:
        raise UnsupportedAttentionError(
            mask.description if isinstance(mask, UnknownMask) else "a mask of the model's own"
        )
    tables, rows = packed.layout.on(query.device), query[0].transpose(0, 1)
    ends = tables.window_visible_end if score.visible.window else tables.visible_end
    if packed.gathers:
        if ends is not None:
            raise UnsupportedAttentionError("latent attention with tokens that see later ones")
        return _attend_gathered(packed.attention, rows, key, value, tables, score)
    if key.shape[2] != len(rows):
        raise UnsupportedAttentionError("keys of other tokens than the queries")
    keys, values = packed.pages_of(key, value)
    return paged_attention(AttentionCall(rows, keys, values, tables, score, ends), packed.attention)


def _attend_gathered(
    attention: PagedAttention, rows: "Tensor", key: "Tensor", value: "Tensor", tables: PackedTables, score: Score
) -> "Tensor":
    """Attend from rows [tokens, heads, size] to the keys [1, heads, key tokens, size] of all sequences."""
    import torch

    if key.shape[2] != sum(tables.kv_lengths):
        raise UnsupportedAttentionError("keys of other tokens than the cached ones")
    if not uses_kernel(rows, attention):
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        return attention.attend(AttentionCall(rows, keys, values, tables, score))
    attended, begin = [], 0
    for first, end, length in zip(tables.query_starts, tables.query_starts[1:], tables.kv_lengths, strict=False):
        one_key, one_value = key[:, :, begin : begin + length], value[:, :, begin : begin + length]
        one_table = single_pages(1, end - first, length)
        call = AttentionCall(rows[first:end], _as_pages(one_key), _as_pages(one_value), one_table, score)
        attended.append(paged_attention(call, attention))
        begin += length
    return torch.cat(attended)


def _unsupported(module: Any, arguments: dict[str, Any]) -> str:
    """Return the features of a call that paged attention lacks; empty if it supports all of them."""
    is_causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        return f"{type(module).__name__} is not causal"
    sinks = arguments.get("s_aux")
    has_other_sinks = sinks is not None and sinks.dim() != 1
    unknown = arguments.keys() - _KNOWN_ARGUMENTS | ({"s_aux"} if has_other_sinks else set())
    return ", ".join(sorted(name for name in unknown if _may_matter(arguments.get(name))))


def _may_matter(value: Any) -> bool:
    """Return True if an unknown argument can change the result; `generate` passes its tokenizer to every layer."""
    import torch

    return value is not False and isinstance(value, torch.Tensor | bool | int | float | str | tuple | list | dict)


def _fits_kernel(query: "Tensor", key: "Tensor", mask: "Tensor | None", visible: VisibleTokens) -> bool:
    """Return True if each sequence's tokens are its last ones and attend to all earlier ones within the window."""
    import torch

    if query.device.type != "cpu" or (torch.is_grad_enabled() and query.requires_grad):
        return False
    tokens, key_count = query.shape[2], key.shape[2]
    if mask is None:  # a static cache has more keys than tokens, and its end is still empty
        return tokens in (1, key_count)
    verdicts: dict[tuple[VisibleTokens, int], bool] = mask.__dict__.setdefault(
        "llmctl_fits_kernel", {}
    )  # one mask, many layers
    if (visible, key_count) not in verdicts:
        is_boolean = mask.dtype == torch.bool and mask.shape[-2:] == (tokens, key_count)
        verdicts[visible, key_count] = is_boolean and bool((mask == visible.mask(tokens, key_count)).all())
    return verdicts[visible, key_count]


def _as_pages(states: "Tensor") -> "Tensor":
    """Return keys or values [batch, heads, tokens, size] as pages [batch, tokens, heads, size]."""
    pages = states.transpose(1, 2)
    return pages if pages.stride(3) == 1 else pages.contiguous()
