"""The bytes and operations of one cell, computed from the model's shapes, for shares of a limit. Pure."""

from llmctl.bench.task import Cell
from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo
from llmctl.plan.memory import DTYPE_SIZE_BYTES, has_tied_head, kv_cache_bytes
from llmctl.plan.speed import active_share

_HEADS = ("lm_head", "embed_out")


def decode_bytes(info: ModelInfo, cell: Cell, *, weights_bytes: int, new_tokens: int, dtype: str) -> float | None:
    """Return the bytes that one decoding pass has to read.

    These are all weights, and the keys and values of every sequence with half of its answer. An embedding table that is
    not tied to the head does not count, since only one row is read. None for a batch with a mixture of experts, since
    the text determines which experts are read.

    Args:
        weights_bytes: Size of the weights in memory.
        dtype: dtype of keys and values.
    """
    active = active_share(info)
    if active < 1 and cell.batch > 1:
        return None
    table = _table(info)
    unread = table.numel * DTYPE_SIZE_BYTES[dtype] if table is not None and not has_tied_head(info) else 0
    context = cell.prompt_tokens + new_tokens // 2
    return (weights_bytes - unread) * active + kv_cache_bytes(info, context=context, batch=cell.batch, dtype=dtype)


def prefill_operations(info: ModelInfo, *, parameters: int, prompt_tokens: int) -> float:
    """Return the operations of the prefill of one prompt; a multiplication and an addition count as two.

    Each token uses all active weights of the blocks, and only the last token uses the head. In the attention, a token
    sees half of the prompt on average, but at most its window.

    Args:
        parameters: Number of parameters of the loaded model; shared parameters count once.
    """
    table, head = _table(info), _head(info)
    own_head = None if has_tied_head(info) else head
    around = sum(tensor.numel for tensor in (table, own_head) if tensor is not None)
    last = head.numel if head is not None else table.numel if table is not None else 0
    text = info.text_config
    heads = text.get("num_attention_heads") or text.get("n_head") or 0
    window = text.get("sliding_window")
    kinds = text.get("layer_types") or ["full_attention"] * info.layer_count
    seen = 0.0
    for kind in kinds:
        narrow = float(window) if kind == "sliding_attention" and isinstance(window, int) else prompt_tokens
        seen += min(prompt_tokens / 2, narrow)
    attention = 4 * prompt_tokens * seen * heads * (info.head_dim or 0)
    return 2 * (parameters - around) * active_share(info) * prompt_tokens + 2 * last + attention


def _table(info: ModelInfo) -> Tensor | None:
    """Return the token embedding."""
    return _of_vocabulary(info, is_head=False)


def _head(info: ModelInfo) -> Tensor | None:
    return _of_vocabulary(info, is_head=True)


def _of_vocabulary(info: ModelInfo, *, is_head: bool) -> Tensor | None:
    size = info.text_config.get("vocab_size")
    for tensor in info.tensors:
        named_head = any(part in _HEADS for part in tensor.name.split("."))
        if len(tensor.shape) == 2 and tensor.shape[0] == size and named_head == is_head:
            return tensor
    return None
