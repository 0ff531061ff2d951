"""The arithmetic of bytes: weights by module, KV cache, overhead. Pure: no torch, no disk, no network."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo

DTYPE_SIZE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# The CUDA context, cuBLAS workspaces and the allocator's slack: about this much on every card that is used.
GPU_OVERHEAD_BYTES = 900_000_000
# A Python process with torch and transformers imported and a tokenizer loaded, measured on Linux.
RUNTIME_BYTES = 400_000_000
_BLOCK = re.compile(r"^(.*?(?:^|\.)(?:layers|h|blocks|block)\.\d+)\.")
_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "wpe",
    "embed_positions",
    "word_embeddings",
    "embed_in",
    "embed_out",
    "lm_head",
)
# What is read of the weights at a time where they are packed while they are loaded.
PIECE_BYTES = 64 << 20
_SCALES = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", ".SCB")  # of bitsandbytes, in float32
# Architectures whose checkpoints name tensors without the prefix that the loaded module has.
_MODULE_PREFIX = {"gpt2": "transformer."}


@dataclass(frozen=True)
class Quantized:
    """How the weights of linear layers are stored after loading.

    Attributes:
        bits: 8 or 4.
        double: Whether the scales of 4-bit blocks are quantised themselves.
        skip_modules: Names of modules that stay as they are.
        packed: Whether in llmctl's own format, which takes experts and the output head too.
        head_bits: In that format: bits of the output head and an embedding tied to it, or None.
        by_torch: Whether packed for torch's kernels instead of llmctl's.
    """

    bits: Literal[4, 8]
    double: bool = False
    skip_modules: tuple[str, ...] = ()
    packed: bool = False
    head_bits: Literal[4, 8] | None = None
    by_torch: bool = False


def tensor_bytes(tensor: Tensor, *, dtype: str, quantized: Quantized | None, is_tied: bool = False) -> int:
    """Bytes of one tensor once it is loaded in `dtype`, quantised or not; `is_tied` where head and embedding are one.

    bitsandbytes keeps 8-bit weights with one float32 scale a row, and 4-bit ones in blocks of 64 with one float32 scale
    each; double quantisation turns those scales into 8 bits with one float32 for 256 of them (QLoRA,
    arXiv:2305.14314, section 3).
    """
    if tensor.dtype not in ("F64", "F32", "F16", "BF16") or tensor.name.endswith(_SCALES):
        return tensor.size_bytes  # packed or integer, or the scales of such: stays as it is
    bits = quantized_bits(tensor, quantized, is_tied=is_tied)
    if quantized is None or bits is None:
        return tensor.numel * DTYPE_SIZE_BYTES[dtype]
    if quantized.packed:
        *several, outputs, inputs = tensor.shape
        return math.prod(several) * packed_bytes(outputs, inputs, bits, by_torch=quantized.by_torch)
    if bits == 8:
        return tensor.numel + 4 * tensor.shape[0]
    blocks = -(-tensor.numel // 64)
    scales = blocks + 4 * -(-blocks // 256) if quantized.double else 4 * blocks
    return -(-tensor.numel // 2) + scales


def quantized_bits(tensor: Tensor, quantized: Quantized | None, *, is_tied: bool) -> int | None:
    """The bits that a weight gets on loading, or None where it keeps its dtype."""
    if quantized is None:
        return None
    parts = tensor.name.split(".")
    skipped = any(name in parts or tensor.name.startswith(f"{name}.") for name in quantized.skip_modules)
    if quantized.packed and not skipped:
        if parts[-2:] == ["lm_head", "weight"] or (is_tied and len(parts) > 1 and parts[-2] in _TIED):
            return quantized.head_bits
        if is_expert(tensor) and len(tensor.shape) in (2, 3) and not tensor.name.endswith("bias"):
            return quantized.bits
    return quantized.bits if is_linear_weight(tensor, quantized.skip_modules) else None


_TIED = ("embed_tokens", "wte", "word_embeddings", "embed_in")


def packed_bytes(outputs: int, inputs: int, bits: int, *, by_torch: bool = False) -> int:
    """Bytes of a weight [outputs, inputs] in llmctl's own format: blocks of 32 inputs with a float16 scale each.

    Outputs are rounded up to groups of 16. For torch's kernels 8 bits have one scale an output, blocks of 4 bits two
    numbers each.
    """
    if by_torch:
        rows, columns = -(-outputs // 16) * 16, -(-inputs // 32) * 32
        return rows * columns * bits // 8 + (2 * rows if bits == 8 else 4 * rows * columns // 32)
    return -(-outputs // 16) * -(-inputs // 32) * (16 * 32 * bits // 8 + 16 * 2)


def is_linear_weight(tensor: Tensor, skip_modules: Iterable[str] = ()) -> bool:
    """Whether bitsandbytes would quantise it: the matrix of a linear layer inside a block.

    Embeddings and the head stay, and so do the experts of a mixture and the router that chooses among them:
    transformers 5 keeps all experts of a layer in one three-dimensional parameter, which bitsandbytes passes over. A
    shared expert is an ordinary linear layer.
    """
    if len(tensor.shape) != 2 or not tensor.name.endswith(".weight") or not _BLOCK.match(tensor.name):
        return False
    parts = tensor.name.split(".")
    if any(part in _EMBEDDINGS or "norm" in part for part in parts) or is_expert(tensor):
        return False
    if len(parts) > 2 and parts[-2] in ("gate", "router"):
        return False
    return not any(name in parts or tensor.name.startswith(f"{name}.") for name in skip_modules)


def is_expert(tensor: Tensor) -> bool:
    """Whether it belongs to one of the experts of a mixture."""
    return "experts" in tensor.name.split(".")


def module_bytes(info: ModelInfo, *, dtype: str, quantized: Quantized | None) -> dict[str, int]:
    """Bytes by the modules that are placed whole: each decoder block, and what stands around the blocks.

    The names are those of the loaded model's modules, in the order in which a forward pass meets them. A tied output
    head takes nothing of its own.
    """
    prefix = _MODULE_PREFIX.get(info.model_type, "")
    sizes: dict[str, int] = {}
    for tensor in info.tensors:
        name = tensor.name if not prefix or tensor.name.startswith((prefix, "lm_head")) else prefix + tensor.name
        match = _BLOCK.match(name)
        module = match[1] if match else name.rpartition(".")[0] or name
        if module == "lm_head" and tied(info):
            continue
        size = tensor_bytes(tensor, dtype=dtype, quantized=quantized, is_tied=tied(info))
        sizes[module] = sizes.get(module, 0) + size
    if tied(info):
        sizes["lm_head"] = 0
    return dict(sorted(sizes.items(), key=lambda item: _forward_order(item[0])))


def _forward_order(module: str) -> tuple[int, int, str]:
    if any(part in _EMBEDDINGS[:-1] for part in module.split(".")):
        return (0, 0, module)
    number = re.search(r"\.(\d+)$", module)
    if number:
        return (1, int(number[1]), module)
    return (3, 0, module) if module == "lm_head" else (2, 0, module)


def tied(info: ModelInfo) -> bool:
    """Whether the output head shares the weights of the embedding."""
    named = info.config.get("tie_word_embeddings", info.text_config.get("tie_word_embeddings"))
    if named is None:
        return not any(tensor.name == "lm_head.weight" for tensor in info.tensors)
    return bool(named)


def kv_cache_bytes(info: ModelInfo, *, context: int, batch: int = 1, dtype: str) -> int:
    """Bytes of keys and values for `batch` sequences of `context` tokens.

    Layers of a sliding window keep at most the window less the token at hand. Multi-head latent attention keeps the
    latent and the rotary part of the key, once for all heads (DeepSeek-V2, arXiv:2405.04434, section 2.1), as
    transformers does. 0 where config.json does not describe the attention.
    """
    text = info.text_config
    latent, rotary = text.get("kv_lora_rank"), text.get("qk_rope_head_dim")
    if isinstance(latent, int) and isinstance(rotary, int):
        return context * info.layer_count * (latent + rotary) * DTYPE_SIZE_BYTES[dtype] * batch
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads") or text.get("n_head")
    if not isinstance(heads, int) or not info.head_dim or not info.layer_count:
        return 0
    window = text.get("sliding_window")
    kinds = text.get("layer_types") or ["full_attention"] * info.layer_count
    tokens = 0
    for kind in kinds:
        tokens += min(context, window - 1) if kind == "sliding_attention" and isinstance(window, int) else context
    return 2 * tokens * heads * info.head_dim * DTYPE_SIZE_BYTES[dtype] * batch


def activation_bytes(info: ModelInfo, *, context: int, batch: int = 1, dtype: str) -> int:
    """Bytes of intermediate results while a prompt of `context` tokens is read in one pass, at the widest point.

    Counted as eight vectors of the hidden size and four of the feed-forward's for every token, and three copies of the
    logits of the last token in float32. Found by measuring Llamas on a CPU; a mixture's tokens visit several experts.
    """
    text = info.text_config
    hidden = text.get("hidden_size") or text.get("n_embd") or 0
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    chosen = text.get("num_experts_per_tok")
    if isinstance(chosen, int) and isinstance(text.get("moe_intermediate_size"), int):
        inner = max(inner, chosen * text["moe_intermediate_size"])
    if not isinstance(hidden, int) or not isinstance(inner, int):
        return 0
    logits = 3 * 4 * int(text.get("vocab_size") or 0) * batch
    return batch * context * (8 * hidden + 4 * inner) * DTYPE_SIZE_BYTES[dtype] + logits


def mapped_bytes(info: ModelInfo, *, dtype: str, quantized: Quantized | None) -> int:
    """Bytes of the weight files that lie in memory beside the loaded weights until loading ends.

    transformers maps the files and takes tensors of the right dtype as they lie there; whatever is converted is read
    through the map first. The system can drop these pages, so they count for the peak and not for what must fit.
    """
    if (info.quantization_method or "").startswith("llmctl"):
        return 0
    if quantized is not None and quantized.packed:
        return PIECE_BYTES  # what was read is let go at once
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    return sum(
        tensor.size_bytes
        for tensor in info.tensors
        if tensor.dtype != names[dtype] or (quantized is not None and is_linear_weight(tensor, quantized.skip_modules))
    )


@dataclass(frozen=True)
class Memory:
    """What a plan will take.

    Attributes:
        weights: Bytes of weights by device, `cuda:0`, `cpu` or `mps`.
        kv_cache_bytes: Keys and values for `batch` sequences of `context` tokens.
        activation_bytes: Intermediate results while a prompt of `context` tokens is read.
        context: The number of tokens counted.
        batch: The number of sequences counted.
        mapped_bytes: What of the files lies in RAM beside the weights while they are loaded.
        draft_bytes: The draft model with its cache and activations.
        adapter_bytes: Adapters that are not merged.
    """

    weights: Mapping[str, int]
    kv_cache_bytes: int
    activation_bytes: int
    context: int
    batch: int = 1
    mapped_bytes: int = 0
    draft_bytes: int = 0
    adapter_bytes: int = 0

    @property
    def working_bytes(self) -> int:
        """What is needed besides weights and runtime."""
        return self.kv_cache_bytes + self.activation_bytes

    @property
    def beside_bytes(self) -> int:
        """What lies beside the model: a draft model, adapters."""
        return self.draft_bytes + self.adapter_bytes

    @property
    def overhead_bytes(self) -> int:
        """The runtime itself: on every GPU in use, and in RAM."""
        gpus = sum(1 for device in self.weights if device.startswith("cuda"))
        return gpus * GPU_OVERHEAD_BYTES + RUNTIME_BYTES

    @property
    def total_bytes(self) -> int:
        """Everything together, once it is loaded."""
        return sum(self.weights.values()) + self.working_bytes + self.beside_bytes + self.overhead_bytes

    @property
    def peak_ram_bytes(self) -> int:
        """The largest resident memory of the process, loading included, where all of it lies in RAM."""
        weights = sum(size for device, size in self.weights.items() if not device.startswith("cuda"))
        return RUNTIME_BYTES + weights + self.beside_bytes + max(self.mapped_bytes, self.working_bytes)
