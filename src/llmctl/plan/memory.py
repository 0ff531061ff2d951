"""Bytes of weights by module, KV cache, activations and runtime. Pure: no torch, no disk, no network."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo
from llmctl.plan.cache_memory import DTYPE_SIZE_BYTES
from llmctl.plan.gpus import is_card
from llmctl.quant.backend import EMBEDDINGS, FLOATS, Quantization
from llmctl.quant.precision import Kind, kind_of

# CUDA context, cuBLAS workspaces and the allocator's slack, approximately, on every card in use.
GPU_OVERHEAD_BYTES = 900_000_000
# A Python process with torch and transformers imported and a tokenizer loaded, measured on Linux.
RUNTIME_BYTES = 400_000_000
# Architectures whose checkpoints name tensors without the prefix that the loaded module has.
_MODULE_PREFIX = {"gpt2": "transformer."}
_HEAD = "lm_head"


def tensor_bytes(
    tensor: Tensor,
    *,
    dtype: str,
    quantization: Quantization | None = None,
    is_tied: bool = False,
    is_float32: bool = False,
) -> int:
    """Return the bytes of one tensor once it is loaded in `dtype`, quantised or not.

    Args:
        is_tied: True if the output head shares the weights of the embedding.
        is_float32: True if the tensor stays in float32 unless it is quantised.
    """
    dtype_bytes = DTYPE_SIZE_BYTES["float32" if is_float32 else dtype]
    if quantization is not None and quantization.is_stored:
        return quantization.backend.stored_bytes(tensor, quantization, dtype_bytes=dtype_bytes)
    if tensor.dtype not in FLOATS and not tensor.dtype.startswith("F8"):
        return tensor.size_bytes  # an integer stays as it is
    if quantization is not None:
        size = quantization.backend.weight_bytes(tensor, quantization, is_tied=is_tied)
        if size is not None:
            return size
    return tensor.numel * dtype_bytes


def unquantised_bytes(info: ModelInfo, quantization: Quantization | None) -> int:
    """Return the bytes of the weights that stay in half precision although the rest is quantised on loading."""
    if quantization is None or quantization.is_stored:
        return 0
    is_tied = info.has_tied_head
    weight_bytes = quantization.backend.weight_bytes
    return sum(2 * t.numel for t in info.loaded_tensors if weight_bytes(t, quantization, is_tied=is_tied) is None)


def module_bytes(info: ModelInfo, *, dtype: str, quantization: Quantization | None = None) -> dict[str, int]:
    """Return the bytes of each module that is placed whole: the decoder blocks, and the modules around them.

    The names are those of the loaded model's modules, in the order of a forward pass; a tensor that belongs to a module
    with blocks inside has its own name. A tied output head takes no bytes of its own.
    """
    sizes: dict[str, int] = {}
    blocks = {tensor.block.rpartition(".")[0] for tensor in info.loaded_tensors if tensor.block is not None}
    parents = {block[: match.start()] for block in blocks for match in re.finditer(r"\.|$", block)}
    for tensor in info.loaded_tensors:
        module = _module_of(tensor, parents, _MODULE_PREFIX.get(info.model_type, ""))
        if module.rpartition(".")[2] == _HEAD and info.has_tied_head:
            continue
        size = tensor_bytes(
            tensor,
            dtype=dtype,
            quantization=quantization,
            is_tied=info.has_tied_head,
            is_float32=info.stays_in_float32(tensor.name, dtype=dtype),
        )
        sizes[module] = sizes.get(module, 0) + size
    if info.has_tied_head:
        sizes[_HEAD] = 0
    return dict(sorted(sizes.items(), key=lambda item: _forward_order(item[0])))


def _module_of(tensor: Tensor, parents: set[str], prefix: str) -> str:
    """Return the module with which a tensor is placed; `parents` are the modules with blocks inside."""
    module = tensor.block or tensor.name.rpartition(".")[0] or tensor.name
    module = tensor.name if module in parents else module
    return module if module.startswith((prefix, _HEAD)) else prefix + module


def tied_modules(info: ModelInfo) -> tuple[str, str] | None:
    """Return the names of the output head and of the embedding whose weights it shares; None if it has its own."""
    if not info.has_tied_head:
        return None
    tables = (tensor for tensor in info.loaded_tensors if kind_of(tensor.name, tensor.shape) is Kind.EMBEDDING)
    prefix = _MODULE_PREFIX.get(info.model_type, "")
    table = next((_module_of(tensor, set(), prefix) for tensor in tables), None)
    return (_HEAD, table) if table is not None else None


def _forward_order(module: str) -> tuple[int, int, str]:
    if any(part in EMBEDDINGS for part in module.split(".")):
        return (0, 0, module)
    number = re.search(r"\.(\d+)$", module)
    if number:
        return (1, int(number[1]), module)
    return (3, 0, module) if module == _HEAD else (2, 0, module)


def activation_bytes(info: ModelInfo, *, context: int, batch: int = 1, dtype: str) -> int:
    """Return the peak bytes of intermediate results while a prompt of `context` tokens is read in one pass.

    This counts eight vectors of the hidden size and four of the feed-forward size for every token, and three copies of
    the last token's logits in float32: measured with Llamas on a CPU. In a mixture of experts (MoE) a token passes
    through several experts.
    """
    text = info.text_config
    hidden = text.get("hidden_size") or text.get("n_embd") or 0
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    active_experts = text.get("num_experts_per_tok")
    if isinstance(active_experts, int) and isinstance(text.get("moe_intermediate_size"), int):
        inner = max(inner, active_experts * text["moe_intermediate_size"])
    if not isinstance(hidden, int) or not isinstance(inner, int):
        return 0
    logits = 3 * 4 * int(text.get("vocab_size") or 0) * batch
    return batch * context * (8 * hidden + 4 * inner) * DTYPE_SIZE_BYTES[dtype] + logits


def mapped_bytes(info: ModelInfo, *, dtype: str, quantization: Quantization | None) -> int:
    """Return the bytes of weight files that are in memory, in addition to the weights, until loading ends.

    transformers maps the files. It uses tensors of the right dtype in place, and reads those that it converts from the
    mapped pages. The system can drop these pages, so they count towards the peak but need not fit.
    """
    backend_bytes = quantization.backend.mapped_bytes(quantization) if quantization is not None else None
    if backend_bytes is not None:
        return backend_bytes
    is_tied = info.has_tied_head
    return sum(
        tensor.size_bytes
        for tensor in info.loaded_tensors
        if _is_converted(tensor, dtype=dtype, quantization=quantization, is_tied=is_tied)
    )


def _is_converted(tensor: Tensor, *, dtype: str, quantization: Quantization | None, is_tied: bool) -> bool:
    if tensor.dtype in FLOATS and tensor.dtype != {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]:
        return True
    if quantization is not None and quantization.is_stored:
        return tensor_bytes(tensor, dtype=dtype, quantization=quantization) != tensor.size_bytes
    return (
        quantization is not None
        and quantization.backend.weight_bytes(tensor, quantization, is_tied=is_tied) is not None
    )


@dataclass(frozen=True)
class ImageMemory:
    """The memory that images need beside the language model.

    Attributes:
        tower_bytes: Bytes of the towers.
        feature_bytes: Maximum bytes of the features of images that are kept.
        encoder_bytes: Bytes of intermediate results while one image passes through the towers.
    """

    tower_bytes: int = 0
    feature_bytes: int = 0
    encoder_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All bytes together."""
        return self.tower_bytes + self.feature_bytes + self.encoder_bytes


@dataclass(frozen=True)
class Memory:
    """The memory that a plan needs.

    Attributes:
        weights: Bytes of weights by device, `cuda:0`, `xpu:0`, `cpu` or `mps`.
        kv_cache_bytes: Bytes of keys and values for `batch` sequences of `context` tokens.
        activation_bytes: Bytes of intermediate results while a prompt of `context` tokens is read.
        context: Number of tokens counted.
        batch: Number of sequences counted.
        state_bytes: Bytes of the recurrent states of `batch` sequences.
        mapped_bytes: Bytes of the files in RAM beside the weights during loading.
        draft_bytes: Bytes of the draft model with its cache and activations.
        adapter_bytes: Bytes of adapters that are not merged.
        images: Memory for images, if they are planned for.
    """

    weights: Mapping[str, int]
    kv_cache_bytes: int
    activation_bytes: int
    context: int
    batch: int = 1
    state_bytes: int = 0
    mapped_bytes: int = 0
    draft_bytes: int = 0
    adapter_bytes: int = 0
    images: ImageMemory = ImageMemory()

    @property
    def working_bytes(self) -> int:
        """Bytes of KV cache, recurrent states and activations."""
        return self.kv_cache_bytes + self.state_bytes + self.activation_bytes

    @property
    def extra_bytes(self) -> int:
        """Bytes of the draft model, the adapters and the images."""
        return self.draft_bytes + self.adapter_bytes + self.images.total_bytes

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the runtime: on every GPU in use, and in RAM."""
        gpus = sum(map(is_card, self.weights))
        return gpus * GPU_OVERHEAD_BYTES + RUNTIME_BYTES

    @property
    def total_bytes(self) -> int:
        """All bytes together, once the model is loaded; every GPU has activations in its turn."""
        gpus = sum(map(is_card, self.weights))
        again = max(gpus - 1, 0) * self.activation_bytes
        return sum(self.weights.values()) + self.working_bytes + again + self.extra_bytes + self.overhead_bytes

    def bytes_on(self, device: str) -> int:
        """Return the bytes on one of the devices in use, the runtime included.

        The GPUs have equal parts of the KV cache, and each has activations; without a GPU, they are in RAM.
        """
        gpus = [name for name in self.weights if name != "cpu"]
        working = self.working_bytes + self.extra_bytes
        size = self.weights[device]
        if device != "cpu":
            overhead = GPU_OVERHEAD_BYTES if is_card(device) else RUNTIME_BYTES
            divided = (working - self.activation_bytes) // len(gpus)
            return size + divided + self.activation_bytes + overhead
        return size + (0 if gpus else working) + RUNTIME_BYTES

    @property
    def peak_ram_bytes(self) -> int:
        """The peak resident memory of the process, loading included, for a model in RAM."""
        weights = sum(size for device, size in self.weights.items() if not is_card(device))
        return RUNTIME_BYTES + weights + self.extra_bytes + max(self.mapped_bytes, self.working_bytes)
