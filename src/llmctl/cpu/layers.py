"""Layers computed by llmctl's CPU kernels, with weights in 4 or 8 bits or as torch stores them.

A quantised weight is one flat tensor of bytes under its original name: first the codes of all blocks, then their scales
(`packing.native_bytes` returns its size). This keeps tied weights, saving, loading and device maps working, because
they depend on names and identities. `expert_layers` has the experts of MoE layers.

If the kernels were not compiled, `quant.torch_packed_weight.TorchPacked` replaces `Packed`.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.cpu import kernels
from llmctl.cpu.operations import Kernels
from llmctl.cpu.packing import BLOCK, GROUP, Encoding, native_bytes
from llmctl.cpu.tensors import dtype_codes
from llmctl.transformers_compat import embedding_scale

Parts = tuple[Tensor, Tensor]  # codes and scales of a packed weight
Dtype = torch.dtype | None
ROWS_TOGETHER = 64  # weights are packed in multiples of this number of rows
_LOOKUP_ELEMENTS = 1 << 24  # elements that a lookup dequantises together


def native() -> Kernels:
    """Return the kernels. Raises RuntimeError if they are missing."""
    library = kernels.load()
    if library is None:
        raise RuntimeError(f"weights of llmctl's own format need its compiled kernels: {kernels.missing()}")
    return library


class Packed:
    """The packing of one weight [n, k], and multiplication by it. Its state: cached views of the last packed tensor.

    Attributes:
        packing_format: Name of the layout.
        has_native_layout: True if llmctl's kernels and programs can read the layout.
        encoding: The encoding of weights in this layout.
    """

    packing_format = "llmctl"
    has_native_layout = True
    encoding: Encoding = "llmctl"

    def __init__(self, bits: int, n: int, k: int) -> None:
        self.bits, self.n, self.k = bits, n, k
        self._views: tuple[Tensor, int, Tensor, Tensor] | None = None

    def __getstate__(self) -> tuple[int, int, int]:
        return self.bits, self.n, self.k

    def __setstate__(self, state: tuple[int, int, int]) -> None:
        self.__init__(*state)  # type: ignore[misc] # views are not copied with a module

    @property
    def size_bytes(self) -> int:
        """The size of the packed weight in bytes."""
        return native_bytes(self.n, self.k, self.bits, self.encoding)

    def parts(self, packed: Tensor) -> Parts:
        """Return views of a packed weight: codes uint8 [n/16, k/32, 64 * bits], scales float16 [n/16, k/32, 16]."""
        groups, blocks = -(-self.n // GROUP), -(-self.k // BLOCK)
        size = groups * blocks * 64 * self.bits
        codes, scales = packed[:size], packed[size:]
        return codes.view(groups, blocks, 64 * self.bits), scales.view(torch.float16).view(groups, blocks, GROUP)

    def views(self, packed: Tensor) -> Parts:
        """Return `parts`, cached."""
        cached = self._views
        if cached is None or cached[0] is not packed or cached[1] != packed.data_ptr():
            cached = self._views = (packed, packed.data_ptr(), *self.parts(packed.detach()))
        return cached[2], cached[3]

    def pack_rows(self, packed: Tensor, start: int, rows: Tensor) -> None:
        """Pack rows [count, k] of the weight, beginning with row `start`, a multiple of ROWS_TOGETHER."""
        library = native()
        codes, scales = self.parts(packed)
        groups = slice(start // GROUP, -(-(start + len(rows)) // GROUP))
        codes[groups], scales[groups] = (library.quantize_q4 if self.bits == 4 else library.quantize_q8)(rows)
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(rows)):
            scales[groups] = torch.nan  # codes cannot be NaN, so the scales mark a weight that is not finite

    def rows(self, packed: Tensor, ids: Tensor) -> Tensor:
        """Return rows [count, k] of the weight, as float32."""
        library = native()
        codes, scales = self.views(packed)
        groups, place = torch.unique(ids // GROUP, return_inverse=True)
        dequantize = library.dequantize_q4 if self.bits == 4 else library.dequantize_q8
        return dequantize(codes[groups], scales[groups], len(groups) * GROUP, self.k)[place * GROUP + ids % GROUP]

    def multiply(self, x: Tensor, parts: Parts, bias: Tensor | None = None, dtype: Dtype = None) -> Tensor:
        """Multiply x [..., k] by the weight and add a bias [n]; returns `dtype` or, by default, x's type."""
        library = native()
        product = library.linear_q4 if self.bits == 4 else library.linear_q8
        return product(x if x.is_contiguous() else x.contiguous(), *parts, self.n, self.k, bias, dtype)


@cache
def packed_parameter_class(dtype: torch.dtype) -> type[nn.Parameter]:
    """Return a class of parameters that hold bytes and report `dtype`."""
    return type("PackedParameter", (nn.Parameter,), {"dtype": property(lambda _: dtype)})


class PackedLinear(nn.Module):
    """A linear layer in 4 or 8 bits."""

    result_dtype: torch.dtype | None = None  # None: the input's dtype

    def __init__(self, packed: Packed, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = packed.k, packed.n, packed.bits
        self.is_transposed = False  # True if the full weight is [in_features, out_features], as in GPT-2
        self.packed = packed
        self.weight = nn.Parameter(torch.empty(packed.size_bytes, dtype=torch.uint8), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(packed.n, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features] by the weight."""
        return self.packed.multiply(x, self.packed.views(self.weight), self.bias, self.result_dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, bias={self.bias is not None}"


class PackedHead(PackedLinear):
    """The output head in 4 or 8 bits. Its logits are float32, because in bfloat16 the top two are often equal."""

    result_dtype = torch.float32


class PackedEmbedding(nn.Module):
    """An embedding in 4 or 8 bits, which dequantises the rows that it looks up.

    Attributes:
        scale: The factor by which some architectures multiply embeddings, rounded to their dtype; None without one.
    """

    def __init__(self, original: nn.Embedding, packed: Packed, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = original.num_embeddings, original.embedding_dim
        self.padding_idx, self.bits, self.dtype = original.padding_idx, packed.bits, dtype
        scale = embedding_scale(original)
        self.scale = None if scale is None else float(torch.tensor(scale, dtype=dtype, device="cpu"))
        self.packed = packed
        self.weight = nn.Parameter(torch.empty(packed.size_bytes, dtype=torch.uint8), requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return rows [..., embedding_dim] for ids [...], in the model's dtype."""
        ids = input_ids.reshape(-1)
        rows = torch.empty((len(ids), self.embedding_dim), dtype=self.dtype)
        step = max(_LOOKUP_ELEMENTS // (GROUP * self.embedding_dim), 1)
        for start in range(0, len(ids), step):
            rows[start : start + step] = self.packed.rows(self.weight, ids[start : start + step]).to(self.dtype)
        rows = rows.view(*input_ids.shape, self.embedding_dim)
        return rows if self.scale is None else rows * self.scale

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


class KernelLinear(nn.Linear):
    """A linear layer computed by llmctl's kernels, or by torch if gradients are needed.

    An existing layer becomes one by a change of its class; its weights stay. Results do not depend on the rest of the
    batch.
    """

    result_dtype: torch.dtype | None = None  # None: the input's dtype

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features] by the weight."""
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return super().forward(x)
        x = x if x.is_contiguous() else x.contiguous()
        return native().linear(x, self.weight, self.bias, self.result_dtype)


class KernelHead(KernelLinear):
    """The output head as torch stores it. Its logits are float32, as those of `PackedHead` are."""

    result_dtype = torch.float32


def use_kernels(model: nn.Module) -> int:
    """Make the kernels compute every unquantised linear layer on the CPU. Return the number of layers."""
    count = 0
    get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    for module in model.modules():
        # torchao's weights are tensors of a class of their own; compressed-tensors has layers without a weight
        weight = module.weight if type(module) is nn.Linear and hasattr(module, "weight") else None
        if type(weight) is not nn.Parameter or weight.device.type != "cpu":
            continue
        if weight.dtype in dtype_codes() and weight.is_contiguous():
            module.__class__ = KernelHead if module is head else KernelLinear
            count += 1
    return count
