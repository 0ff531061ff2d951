"""The memory that a sequence needs beside the weights: keys and values, latents, and recurrent states."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo

DTYPE_SIZE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KEY_PROJECTIONS = {"k_proj", "qkv_proj", "kv_a_proj_with_mqa", "query_key_value", "c_attn", "Wqkv", "k_b_proj"}
_STATE_SIZES = ("mamba_d_state", "ssm_state_size", "state_size")


@dataclass(frozen=True)
class _Mixer:
    """The part of a layer that reads earlier tokens.

    Attributes:
        tensors: Its tensors, by their names inside the part.
    """

    layer: int
    tensors: Mapping[str, Tensor]

    @property
    def is_recurrent(self) -> bool:
        """True if it keeps a recurrent or convolutional state."""
        return "A_log" in self.tensors or any(_is_convolution(tensor) for tensor in self.tensors.values())

    @property
    def is_attention(self) -> bool:
        """True if it caches keys and values, or latents."""
        return not self.is_recurrent and any(set(name.split(".")) & _KEY_PROJECTIONS for name in self.tensors)


def kv_cache_bytes(info: ModelInfo, *, context: int, batch: int = 1, dtype: str) -> int:
    """Return the bytes of keys and values for `batch` sequences of `context` tokens.

    A layer with a sliding window keeps at most the window less the current token. Multi-head latent attention keeps the
    latent and the rotary part of the key, once for all heads (DeepSeek-V2, arXiv:2405.04434, section 2.1), as
    transformers does. In a hybrid, only the layers with attention count. The result is 0 if config.json does not
    describe the attention.
    """
    text, layers = info.text_config, _attention_layers(info)
    latent, rotary = text.get("kv_lora_rank"), text.get("qk_rope_head_dim")
    if isinstance(latent, int) and isinstance(rotary, int):
        return context * len(layers) * (latent + rotary) * DTYPE_SIZE_BYTES[dtype] * batch
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads") or text.get("n_head")
    if not isinstance(heads, int) or not info.head_dim or not info.layer_count:
        return 0
    window = text.get("sliding_window")
    kinds = text.get("layer_types") or []
    elements = 0
    for layer in layers:
        kind = kinds[layer] if layer < len(kinds) else "full_attention"
        if kind == "sliding_attention" and isinstance(window, int):
            elements += min(context, window - 1) * heads * info.head_dim
        else:
            elements += context * _full_attention_width(text, heads=heads, head_dim=info.head_dim)
    return 2 * elements * DTYPE_SIZE_BYTES[dtype] * batch


def state_bytes(info: ModelInfo, *, batch: int = 1, dtype: str) -> int:
    """Return the bytes of the recurrent and convolutional states of `batch` sequences, whatever their length.

    Recurrent states are float32. A convolution keeps its last inputs in the model's dtype.
    """
    size = 0
    for mixer in _mixers(info):
        if mixer.is_recurrent:
            size += 4 * _recurrent_elements(mixer, info.text_config)
            size += sum(prod(t.shape) * DTYPE_SIZE_BYTES[dtype] for t in mixer.tensors.values() if _is_convolution(t))
    return size * batch


def _full_attention_width(text: Mapping[str, Any], *, heads: int, head_dim: int) -> int:
    """Return the elements of a token's keys in a layer of full attention, which Gemma 4 makes wider than the others."""
    return int(text.get("num_global_key_value_heads") or heads) * int(text.get("global_head_dim") or head_dim)


def _attention_layers(info: ModelInfo) -> list[int]:
    """Return the layers that cache keys and values: in a hybrid those with attention, else all that do not share."""
    mixers = _mixers(info)
    if any(mixer.is_recurrent for mixer in mixers):
        return sorted({mixer.layer for mixer in mixers if mixer.is_attention})
    shared = info.text_config.get("num_kv_shared_layers")
    return list(range(info.layer_count - (shared if isinstance(shared, int) else 0)))


def _mixers(info: ModelInfo) -> list[_Mixer]:
    parts: dict[tuple[int, str], dict[str, Tensor]] = {}
    for tensor in info.tensors:
        names = tensor.name.split(".")
        number = next((n for n, name in enumerate(names) if name.isdigit()), None)
        if number is not None and len(names) > number + 2:
            inside = ".".join(names[number + 2 :]).removesuffix(".weight")
            parts.setdefault((int(names[number]), ".".join(names[: number + 2])), {})[inside] = tensor
    return [_Mixer(layer, tensors) for (layer, _), tensors in parts.items()]


def _is_convolution(tensor: Tensor) -> bool:
    """Return True for the weight [channels, 1, kernel] of a convolution over tokens, one for each channel."""
    return "conv" in tensor.name and len(tensor.shape) == 3 and tensor.shape[1] == 1


def _recurrent_elements(mixer: _Mixer, text: Mapping[str, Any]) -> int:
    """Return the elements of a recurrent state.

    These are inner size * state size in Mamba 1 and 2 (arXiv:2405.21060), and heads * key size * value size in delta
    rules (arXiv:2412.06464).
    """
    decay = mixer.tensors.get("A_log")
    if decay is None:
        return 0
    if len(decay.shape) == 2:
        return prod(decay.shape)
    key, value = text.get("linear_key_head_dim"), text.get("linear_value_head_dim")
    key, value = key or text.get("linear_head_dim"), value or text.get("linear_head_dim")
    if isinstance(key, int) and isinstance(value, int):
        return prod(decay.shape) * key * value
    out, size = mixer.tensors.get("out_proj"), next((text[name] for name in _STATE_SIZES if name in text), 0)
    return int(out.shape[1]) * int(size) if out is not None else 0
