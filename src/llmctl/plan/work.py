"""The bytes that decoding reads and the operations of a prefill, computed from the model's shapes. Pure."""

from collections.abc import Mapping

from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo
from llmctl.plan.cache_memory import DTYPE_SIZE_BYTES, kv_cache_bytes, state_bytes
from llmctl.plan.memory import tensor_bytes
from llmctl.quant.backend import FLOATS, Quantization

_HEADS = ("lm_head", "embed_out")


def active_share(info: ModelInfo) -> float:
    """Return the share of the weights that one token uses: in a mixture of experts only some of the experts."""
    experts = sum(tensor.numel for tensor in info.loaded_tensors if tensor.is_expert)
    return 1 - experts / info.parameters * (1 - _active_experts(info)) if info.parameters else 1.0


def _active_experts(info: ModelInfo) -> float:
    """Return the share of the experts that one token uses."""
    text = info.text_config
    count = text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts")
    active = text.get("num_experts_per_tok")
    if not isinstance(count, int) or not isinstance(active, int) or not count:
        return 1.0
    return min(active / count, 1)


def weight_reads(info: ModelInfo, *, dtype: str, quantization: Quantization | None) -> Mapping[str, float]:
    """Return the bytes of weights that decoding one token reads, by kind: the dtype, `8-bit` or `4-bit`.

    An embedding table that is not tied to the head does not count, since only one row is read.
    """
    is_tied, reads = info.has_tied_head, dict[str, float]()
    table = None if is_tied else _table(info)
    for tensor in info.loaded_tensors:
        if tensor is table:
            continue
        size = tensor_bytes(tensor, dtype=dtype, quantization=quantization, is_tied=is_tied)
        kind = _kind(tensor, size, dtype=dtype, quantization=quantization)
        reads[kind] = reads.get(kind, 0) + size * (_active_experts(info) if tensor.is_expert else 1)
    return reads


def _kind(tensor: Tensor, size_bytes: int, *, dtype: str, quantization: Quantization | None) -> str:
    """Return the kind of a loaded tensor: quantised ones are told by their size, scales included."""
    if quantization is None or not tensor.numel:
        return dtype
    if quantization.is_stored:
        is_packed = tensor.dtype not in FLOATS and not quantization.backend.is_unpacked(quantization)
        return dtype if not is_packed else f"{quantization.bits or 4}-bit"
    bits = 8 * size_bytes / tensor.numel
    return "4-bit" if bits < 6 else "8-bit" if bits < 12 else dtype


def decode_bytes(info: ModelInfo, *, context: int, batch: int = 1, weights_bytes: int, dtype: str) -> float | None:
    """Return the bytes that one decoding pass has to read.

    These are all weights, the keys and values of `context` tokens of every sequence, and its recurrent state, which is
    read and written. An embedding table that is
    not tied to the head does not count, since only one row is read. None for a batch with a mixture of experts, since
    the text determines which experts are read.

    Args:
        weights_bytes: Size of the weights in memory.
        dtype: dtype of keys and values.
    """
    active = active_share(info)
    if active < 1 and batch > 1:
        return None
    table = _table(info)
    unread = table.numel * DTYPE_SIZE_BYTES[dtype] if table is not None and not info.has_tied_head else 0
    cache = kv_cache_bytes(info, context=context, batch=batch, dtype=dtype)
    return (weights_bytes - unread) * active + cache + 2 * state_bytes(info, batch=batch, dtype=dtype)


def prefill_operations(info: ModelInfo, *, parameters: int, prompt_tokens: int) -> tuple[float, float]:
    """Return the operations of the prefill of one prompt in the weights and in the attention.

    A multiplication and an addition count as two. Each token uses all active weights of the blocks, and only the last
    token uses the head. In the attention, a token sees half of the prompt on average, but at most its window.

    Args:
        parameters: Number of parameters of the loaded model; shared parameters count once.
    """
    table, head = _table(info), _head(info)
    own_head = None if info.has_tied_head else head
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
    return 2 * (parameters - around) * active_share(info) * prompt_tokens + 2 * last, attention


def _table(info: ModelInfo) -> Tensor | None:
    """Return the token embedding."""
    return _of_vocabulary(info, is_head=False)


def _head(info: ModelInfo) -> Tensor | None:
    return _of_vocabulary(info, is_head=True)


def _of_vocabulary(info: ModelInfo, *, is_head: bool) -> Tensor | None:
    size = info.text_config.get("vocab_size")
    for tensor in info.loaded_tensors:
        named_head = any(part in _HEADS for part in tensor.name.split("."))
        if len(tensor.shape) == 2 and tensor.shape[0] == size and named_head == is_head:
            return tensor
    return None
