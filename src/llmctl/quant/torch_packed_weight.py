"""Weights in 4 or 8 bits in the layout of torch's packed kernels.

torch multiplies bfloat16 by 8-bit weights with a scale for each output, and by 4-bit weights, evenly spaced, in blocks
of 32 inputs with a scale and a middle each (aten/src/ATen/native/cpu/int8mm_kernel.cpp, int4mm_kernel.cpp). Its layout
of 4 bits depends on the processor: such weights are packed while a model is loaded and are never saved.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmctl.cpu.layers import Dtype, Packed, Parts
from llmctl.cpu.packing import BLOCK, GROUP, padded_shape, torch_bytes

_LEVELS = 15  # steps between the least and the greatest 4-bit code


class TorchPacked(Packed):
    """One weight [n, k] for torch's kernels. Outputs are rounded up to 16, inputs to 32."""

    packing_format = "torch"
    has_native_layout = False

    @property
    def size_bytes(self) -> int:
        """The bytes of the packed weight."""
        return torch_bytes(self.n, self.k, self.bits)

    def parts(self, packed: Tensor) -> Parts:
        """Return codes and scales as views of a packed weight.

        8 bits: int8 [n, k] and bfloat16 [n]. 4 bits: uint8 [n, k/2] and bfloat16 [k/32, n, 2].
        """
        n, k = padded_shape(self.n, self.k)
        size = n * k * self.bits // 8
        codes, scales = packed[:size], packed[size:].view(torch.bfloat16)
        if self.bits == 8:
            return codes.view(torch.int8).view(n, k), scales
        return codes.view(n, k // 2), scales.view(k // BLOCK, n, 2)

    def pack_rows(self, packed: Tensor, start: int, rows: Tensor) -> None:
        """Pack rows [count, k] of the weight, the first of which is `start`, a multiple of ROWS_TOGETHER."""
        codes, scales = self.parts(packed)
        rows = pad(rows.float(), (0, -rows.shape[1] % BLOCK, 0, -rows.shape[0] % GROUP))
        span = slice(start, start + len(rows))
        if self.bits == 8:
            scale = (rows.abs().amax(dim=1) / 127).to(torch.bfloat16)
            scales[span] = scale
            codes[span] = _rounded(rows / _divisor(scale)[:, None]).clamp_(-127, 127).to(torch.int8)
            return
        blocks = rows.view(len(rows), -1, BLOCK)
        least, greatest = blocks.aminmax(dim=2)
        scale = ((greatest - least) / _LEVELS).to(torch.bfloat16)
        middle = (least + 8 * scale.float()).to(torch.bfloat16)
        scales[:, span, 0], scales[:, span, 1] = scale.T, middle.T
        code = _rounded((blocks - middle.float()[..., None]) / _divisor(scale)[..., None]).add_(8).clamp_(0, _LEVELS)
        codes[span] = torch._convert_weight_to_int4pack_for_cpu(code.view(rows.shape).int(), 1)

    def rows(self, packed: Tensor, ids: Tensor) -> Tensor:
        """Return rows [count, k] of an 8-bit weight as float32."""
        codes, scales = self.views(packed)
        return codes[ids, : self.k].float() * scales[ids].float()[:, None]

    def multiply(self, x: Tensor, parts: Parts, bias: Tensor | None = None, dtype: Dtype = None) -> Tensor:
        """Return x [..., k] times the weight, plus a bias [n]: [..., n], in `dtype` or x's. Computed in bfloat16."""
        codes, scales = parts
        flat = x.reshape(-1, self.k).to(torch.bfloat16)
        flat = pad(flat, (0, -self.k % BLOCK)).contiguous()
        if self.bits == 8:
            y = torch._weight_int8pack_mm(flat, codes, scales)
        else:
            y = torch._weight_int4pack_mm_for_cpu(flat, codes, BLOCK, scales)
        y = y[:, : self.n].to(dtype or x.dtype)
        return (y if bias is None else y + bias).view(*x.shape[:-1], self.n)


def _divisor(scale: Tensor) -> Tensor:
    """Return a scale as float32; infinity for a scale of 0, so that the codes are 0."""
    return torch.where(scale == 0, torch.inf, scale.float())


def _rounded(values: Tensor) -> Tensor:
    """Return the values rounded, and 0 for those that are not finite: the scale shows them."""
    return values.round_().nan_to_num_(0, 0, 0)
