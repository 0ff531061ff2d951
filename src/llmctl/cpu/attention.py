"""Attention of ordinary passes by the compiled kernel, registered with transformers beside its own.

It is the kernel of the batching engine, and its result for a token depends neither on how a prompt is cut into passes
nor on what else is in the batch. So an answer given alone, one given in a batch, and one that goes on from kept keys
and values are computed alike, to the last bit. What it cannot do (padding, static caches) goes to torch's SDPA.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmctl.cpu.kernels import load
from llmctl.loading.transformers_compat import attention_of, set_attention, takes_registered_attention

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = "llmctl_cpu"


def use_attention(model: Any) -> None:
    """Let a model on the CPU whose attention is SDPA attend through the kernel."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if attention_of(model.config) != "sdpa" or not takes_registered_attention(model):
        return
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    set_attention(model.config, ATTENTION)


def _attend(
    module: Any,
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    **how: Any,
) -> tuple["Tensor", None]:
    """transformers' attention interface: query [batch, heads, tokens, size] to [batch, tokens, heads, size]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    compiled = load()
    window = int(how.get("sliding_window") or 0)
    if compiled is None or not _is_plain(module, query, key, attention_mask, window, how):
        how.setdefault("dropout", 0.0)
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **how)
        return out
    batch, heads, tokens, size = query.shape
    table, starts, lengths = _tables(batch, tokens, key.shape[2])
    scaling = how.get("scaling")
    attended = compiled.paged_attention(
        query.transpose(1, 2).reshape(batch * tokens, heads, size).contiguous(),
        _as_pool(key),
        _as_pool(value),
        table,
        starts,
        lengths,
        scale=size**-0.5 if scaling is None else scaling,
        window=window,
        softcap=how.get("softcap") or 0.0,
    )
    return attended.view(batch, tokens, heads, -1), None


def _is_plain(
    module: Any, query: "Tensor", key: "Tensor", mask: "Tensor | None", window: int, how: dict[str, Any]
) -> bool:
    """Whether each sequence's tokens are its last ones and see all before them, as far as the window goes."""
    import torch

    if query.device.type != "cpu" or how.get("dropout") or (torch.is_grad_enabled() and query.requires_grad):
        return False
    causal = how.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return False
    if any(how.get(name) is not None for name in ("position_bias", "s_aux")):
        return False
    tokens, seen = query.shape[2], key.shape[2]
    if mask is None:  # more keys than tokens are then a static cache's, still empty at its end
        return tokens in (1, seen)
    verdicts: dict[tuple[int, int], bool] = mask.__dict__.setdefault("llmctl_plain", {})
    if (window, seen) not in verdicts:
        verdicts[window, seen] = _shows_all_before(mask, tokens, seen, window)
    return verdicts[window, seen]


def _shows_all_before(mask: "Tensor", tokens: int, seen: int, window: int) -> bool:
    """Whether a mask [batch, 1, tokens, seen] is what the kernel does anyway."""
    import torch

    if mask.dtype != torch.bool or mask.shape[-2:] != (tokens, seen):
        return False
    return bool((mask == visible(tokens, seen, window)).all())


def visible(tokens: int, seen: int, window: int, device: Any = None) -> "Tensor":
    """What the last `tokens` of a sequence see of its `seen` ones, [tokens, seen]: all before them in the window."""
    import torch

    positions = torch.arange(seen, device=device)
    distance = positions[seen - tokens :, None] - positions
    return (distance >= 0) & (distance < window) if window else distance >= 0


@lru_cache(maxsize=8)
def _tables(batch: int, tokens: int, seen: int) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Every sequence in one page of its own: the page table, where its tokens start, and how many it has."""
    import torch

    return (
        torch.arange(batch, dtype=torch.int32)[:, None],
        torch.arange(0, batch * tokens + 1, tokens, dtype=torch.int32),
        torch.full((batch,), seen, dtype=torch.int32),
    )


def _as_pool(states: "Tensor") -> "Tensor":
    """Keys or values [batch, heads, tokens, size] as pages [batch, tokens, heads, size]."""
    pages = states.transpose(1, 2)
    return pages if pages.stride(3) == 1 else pages.contiguous()
