"""Weights in 4 or 8 bits for the kernels that torch brings, where llmctl's own were not compiled.

torch multiplies bfloat16 by weights of 8 bits with a scale for each output, and of 4 bits, evenly spaced, in blocks of
32 inputs with a scale and a middle each (aten/src/ATen/native/cpu/int8mm_kernel.cpp, int4mm_kernel.cpp). How it packs 4
bits is the processor's: such weights are made while a model is loaded and are never saved.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmctl.cpu.layers import Dtype, Packed, Parts
from llmctl.cpu.packing import BLOCK, GROUP, torch_bytes

_LEVELS = 15  # between the least and the greatest of 4-bit codes


class TorchPacked(Packed):
    """How one weight [n, k] is packed and multiplied by torch. Outputs are rounded up to 16, inputs to 32."""

    packing_format = "torch"
    has_native_layout = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed weight."""
        return torch_bytes(self.n, self.k, self.bits)

    @property
    def _padded(self) -> tuple[int, int]:
        return -(-self.n // GROUP) * GROUP, -(-self.k // BLOCK) * BLOCK

    def parts(self, packed: Tensor) -> Parts:
        """Views of a packed weight: codes int8 [n, k] and bfloat16 [n], or uint8 [n, k/2] and bfloat16 [k/32, n, 2]."""
        n, k = self._padded
        size = n * k * self.bits // 8
        codes, scales = packed[:size], packed[size:].view(torch.bfloat16)
        if self.bits == 8:
            return codes.view(torch.int8).view(n, k), scales
        return codes.view(n, k // 2), scales.view(k // BLOCK, n, 2)

    def pack_rows(self, packed: Tensor, start: int, rows: Tensor) -> None:
        """Write some rows [count, k] of the weight into the packed one. `start` is a multiple of ROWS_TOGETHER."""
        codes, scales = self.parts(packed)
        rows = pad(rows.float(), (0, -rows.shape[1] % BLOCK, 0, -rows.shape[0] % GROUP))
        some = slice(start, start + len(rows))
        if self.bits == 8:
            scale = (rows.abs().amax(dim=1) / 127).to(torch.bfloat16)
            scales[some] = scale
            codes[some] = _whole(rows / _divisor(scale)[:, None]).clamp_(-127, 127).to(torch.int8)
            return
        blocks = rows.view(len(rows), -1, BLOCK)
        least, greatest = blocks.aminmax(dim=2)
        scale = ((greatest - least) / _LEVELS).to(torch.bfloat16)
        middle = (least + 8 * scale.float()).to(torch.bfloat16)
        scales[:, some, 0], scales[:, some, 1] = scale.T, middle.T
        code = _whole((blocks - middle.float()[..., None]) / _divisor(scale)[..., None]).add_(8).clamp_(0, _LEVELS)
        codes[some] = torch._convert_weight_to_int4pack_for_cpu(code.view(rows.shape).int(), 1)

    def rows(self, packed: Tensor, ids: Tensor) -> Tensor:
        """Some rows [count, k] of a weight in 8 bits, as float32."""
        codes, scales = self.views(packed)
        return codes[ids, : self.k].float() * scales[ids].float()[:, None]

    def multiply(self, x: Tensor, parts: Parts, bias: Tensor | None = None, dtype: Dtype = None) -> Tensor:
        """x [..., k] times the weight in its parts, plus a bias [n]: [..., n], in `dtype` or else x's.

        Computed in bfloat16.
        """
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
    """A scale as float32; where all of its weights are equal, one that gives codes of zero."""
    return torch.where(scale == 0, torch.inf, scale.float())


def _whole(values: Tensor) -> Tensor:
    """Rounded; zero where a weight is not finite, which its scale tells."""
    return values.round_().nan_to_num_(0, 0, 0)
