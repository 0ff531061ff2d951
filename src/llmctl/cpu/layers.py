"""Layers whose weights lie in 4 or 8 bits and are multiplied by llmctl's own kernels for CPUs.

A quantised weight is one flat tensor of bytes under the name that it had: first the codes of all blocks, then their
scales (`packing.native_bytes` counts them). So everything that goes by names and identities, tied weights, saving,
loading, device maps, goes on working. Experts of a mixture lie in one such tensor a layer, a row for each expert.

Where the kernels were not compiled, `quant.torch_packed_weight.TorchPacked` takes the place of `Packed`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.cpu import kernels
from llmctl.cpu.operations import Kernels
from llmctl.cpu.packing import BLOCK, GROUP, native_bytes
from llmctl.cpu.structs import Activation
from llmctl.transformers_compat import gate_experts

Parts = tuple[Tensor, Tensor]  # codes and scales of a packed weight
Dtype = torch.dtype | None
# transformers' activations that the kernels know
ACTIVATION_OF: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
}
ROWS_TOGETHER = 64  # a weight is packed in multiples of so many rows
_ROWS_AT_ONCE = 1 << 24  # of elements that are dequantised together for a lookup


def native() -> Kernels:
    """The kernels. Raises RuntimeError where there are none."""
    found = kernels.load()
    if found is None:
        raise RuntimeError(f"weights of llmctl's own format need its compiled kernels: {kernels.missing()}")
    return found


class Packed:
    """How one weight [n, k] is packed and multiplied.

    Views are made once for each tensor that takes the weight's place.

    Attributes:
        packing_format: The name of the layout.
        has_native_layout: Whether llmctl's kernels, and programs of them, can read it.
    """

    packing_format = "llmctl"
    has_native_layout = True

    def __init__(self, bits: int, n: int, k: int) -> None:
        self.bits, self.n, self.k = bits, n, k
        self._views: tuple[Tensor, int, Tensor, Tensor] | None = None

    def __getstate__(self) -> tuple[int, int, int]:
        return self.bits, self.n, self.k

    def __setstate__(self, state: tuple[int, int, int]) -> None:
        self.__init__(*state)  # type: ignore[misc] # views are not copied with a module

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed weight."""
        return native_bytes(self.n, self.k, self.bits)

    def parts(self, packed: Tensor) -> Parts:
        """Views of a packed weight: codes uint8 [n/16, k/32, 64 * bits], scales float16 [n/16, k/32, 16]."""
        groups, blocks = -(-self.n // GROUP), -(-self.k // BLOCK)
        size = groups * blocks * 64 * self.bits
        codes, scales = packed[:size], packed[size:]
        return codes.view(groups, blocks, 64 * self.bits), scales.view(torch.float16).view(groups, blocks, GROUP)

    def views(self, packed: Tensor) -> Parts:
        """What `parts` gives, remembered."""
        seen = self._views
        if seen is None or seen[0] is not packed or seen[1] != packed.data_ptr():
            seen = self._views = (packed, packed.data_ptr(), *self.parts(packed.detach()))
        return seen[2], seen[3]

    def pack_rows(self, packed: Tensor, start: int, rows: Tensor) -> None:
        """Write some rows [count, k] of the weight into the packed one. `start` is a multiple of ROWS_TOGETHER."""
        found = native()
        codes, scales = self.parts(packed)
        some = slice(start // GROUP, -(-(start + len(rows)) // GROUP))
        codes[some], scales[some] = (found.quantize_q4 if self.bits == 4 else found.quantize_q8)(rows)
        if not all(torch.isfinite(end) for end in torch.aminmax(rows)):
            scales[some] = torch.nan  # a code has no NaN: what is wrong with a weight shows in its scales

    def rows(self, packed: Tensor, ids: Tensor) -> Tensor:
        """Some rows [count, k] of the weight, as float32."""
        found = native()
        codes, scales = self.views(packed)
        groups, place = torch.unique(ids // GROUP, return_inverse=True)
        dequantize = found.dequantize_q4 if self.bits == 4 else found.dequantize_q8
        return dequantize(codes[groups], scales[groups], len(groups) * GROUP, self.k)[place * GROUP + ids % GROUP]

    def multiply(self, x: Tensor, parts: Parts, bias: Tensor | None = None, dtype: Dtype = None) -> Tensor:
        """x [..., k] times the weight in its parts, plus a bias [n]: [..., n], in `dtype` or else x's."""
        found = native()
        product = found.linear_q4 if self.bits == 4 else found.linear_q8
        return product(x if x.is_contiguous() else x.contiguous(), *parts, self.n, self.k, bias, dtype)


class PackedLinear(nn.Module):
    """A linear layer in 4 or 8 bits."""

    result_dtype: torch.dtype | None = None  # that of what comes in

    def __init__(self, packed: Packed, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = packed.k, packed.n, packed.bits
        self.is_transposed = False  # whether the full weight is [in_features, out_features], as GPT-2's
        self.packed = packed
        self.weight = nn.Parameter(torch.empty(packed.size_bytes, dtype=torch.uint8), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(packed.n, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], in `result_dtype`."""
        return self.packed.multiply(x, self.packed.views(self.weight), self.bias, self.result_dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, bias={self.bias is not None}"


class PackedHead(PackedLinear):
    """The layer of the logits, which it gives in float32: in bfloat16 the likeliest two are often equal."""

    result_dtype = torch.float32


class PackedEmbedding(nn.Module):
    """An embedding in 4 or 8 bits: the rows that are asked for are dequantised.

    `scale` is what some architectures multiply embeddings with, rounded to their dtype.
    """

    def __init__(self, original: nn.Embedding, packed: Packed, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = original.num_embeddings, original.embedding_dim
        self.padding_idx, self.bits, self.dtype = original.padding_idx, packed.bits, dtype
        scale = getattr(original, "scalar_embed_scale", None)
        self.scale = None if scale is None else float(torch.tensor(scale, dtype=dtype, device="cpu"))
        self.packed = packed
        self.weight = nn.Parameter(torch.empty(packed.size_bytes, dtype=torch.uint8), requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids [...] to rows [..., embedding_dim], in the model's dtype."""
        ids = input_ids.reshape(-1)
        rows = torch.empty((len(ids), self.embedding_dim), dtype=self.dtype)
        step = max(_ROWS_AT_ONCE // (GROUP * self.embedding_dim), 1)
        for start in range(0, len(ids), step):
            rows[start : start + step] = self.packed.rows(self.weight, ids[start : start + step]).to(self.dtype)
        rows = rows.view(*input_ids.shape, self.embedding_dim)
        return rows if self.scale is None else rows * self.scale

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


def can_pack_experts(module: nn.Module) -> bool:
    """Whether a module is a mixture's experts in the layout that `pack_experts` knows: that of Mixtral and most others.

    transformers marks the layout on the module (integrations/moe.py, `use_experts_implementation`).
    """
    return (
        getattr(module, "is_concatenated", None) is True
        and getattr(module, "has_gate", None) is True
        and not any(getattr(module, name, False) for name in ("is_transposed", "has_bias", "has_post_expert_norm"))
        and all(getattr(module, name, torch.empty(0)).dim() == 3 for name in EXPERT_WEIGHTS)
    )


EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")


def pack_experts(module: Any, kind: type[Packed], bits: int) -> None:
    """Let a module of experts hold packed weights, and compute with them."""
    module.packed = {}
    for name in EXPERT_WEIGHTS:
        count, n, k = getattr(module, name).shape
        packed = module.packed[name] = kind(bits, n, k)
        empty = torch.empty((count, packed.size_bytes), dtype=torch.uint8)
        setattr(module, name, nn.Parameter(empty, requires_grad=False))
    module.forward = partial(_experts_forward, module)


def _experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What every implementation of experts in transformers computes: each token through the experts chosen for it.

    Args:
        module: The experts.
        hidden_states: [tokens, hidden].
        top_k_index: The experts of each token, [tokens, chosen].
        top_k_weights: Their shares, likewise.
    """
    out = torch.zeros_like(hidden_states)
    up, down = module.packed["gate_up_proj"], module.packed["down_proj"]
    for expert in torch.unique(top_k_index).tolist():
        if expert >= len(module.gate_up_proj):
            continue  # transformers marks with it what no expert takes
        token, position = torch.where(top_k_index == expert)
        inner = up.multiply(hidden_states[token], up.parts(module.gate_up_proj[expert]))
        inner = _gated(module, inner)
        inner = down.multiply(inner, down.parts(module.down_proj[expert]))
        out.index_add_(0, token, (inner * top_k_weights[token, position, None]).to(out.dtype))
    return out


def _gated(module: Any, both: Tensor) -> Tensor:
    """Gates and ups [rows, 2 * inner] to activation(gate) times up."""
    activation = ACTIVATION_OF.get(type(module.act_fn).__name__)
    if activation is None or not module.packed["down_proj"].has_native_layout:
        gated: Tensor = gate_experts(module, both)
        return gated
    gate, up = both.chunk(2, dim=-1)
    return native().gated_activation(gate, up, activation)


class KernelLinear(nn.Linear):
    """An ordinary linear layer that llmctl's kernels multiply. Only its class differs: the weights stay where they are.

    A result does not depend on what else is in the batch. Where gradients are wanted, torch does it.
    """

    result_dtype: torch.dtype | None = None  # that of what comes in

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], in `result_dtype`."""
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return super().forward(x)
        x = x if x.is_contiguous() else x.contiguous()
        return native().linear(x, self.weight, self.bias, self.result_dtype)


class KernelHead(KernelLinear):
    """The layer of the logits, which it gives in float32 as `PackedHead` does."""

    result_dtype = torch.float32


def use_kernels(model: nn.Module) -> int:
    """Let the kernels multiply every linear layer of a model in half precision on the CPU; returns how many."""
    count = 0
    outputs: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = outputs()
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.device.type != "cpu":
            continue
        if module.weight.dtype == torch.bfloat16 and module.weight.is_contiguous():
            module.__class__ = KernelHead if module is head else KernelLinear
            count += 1
    return count
