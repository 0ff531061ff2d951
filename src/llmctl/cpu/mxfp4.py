"""Weights of MXFP4 checkpoints, multiplied by llmctl's CPU kernels as they are: 4.25 bits each."""

import torch
from torch import Tensor

from llmctl.cpu.layers import Dtype, Packed, Parts, native
from llmctl.cpu.packing import BLOCK, GROUP


class Mxfp4Packed(Packed):
    """One weight [n, k] in MXFP4. The values are those of the checkpoint; only their order in memory is another."""

    packing_format = "mxfp4"
    encoding = "mxfp4"

    def parts(self, packed: Tensor) -> Parts:
        """Return views of a packed weight: codes uint8 [n/16, k/32, 256], exponents uint8 [n/16, k/32, 16]."""
        groups, blocks = -(-self.n // GROUP), -(-self.k // BLOCK)
        size = groups * blocks * GROUP * BLOCK // 2
        codes, exponents = packed[:size], packed[size:]
        return codes.view(groups, blocks, -1), exponents.view(groups, blocks, GROUP)

    def pack_blocks(self, packed: Tensor, blocks: Tensor, exponents: Tensor) -> None:
        """Pack the blocks [n, k/32, 16] and exponents [n, k/32] of a checkpoint."""
        for part, value in zip(self.parts(packed), native().pack_mxfp4(blocks, exponents), strict=True):
            part.copy_(value)

    def pack_rows(self, packed: Tensor, start: int, rows: Tensor) -> None:
        """Raise TypeError: weights are read in MXFP4, and none are quantised to it."""
        raise TypeError("weights are not quantised to MXFP4")

    def rows(self, packed: Tensor, ids: Tensor) -> Tensor:
        """Return rows [count, k] of the weight, as float32."""
        codes, exponents = self.views(packed)
        groups, place = torch.unique(ids // GROUP, return_inverse=True)
        values = native().dequantize_mxfp4(codes[groups], exponents[groups], len(groups) * GROUP, self.k)
        return values[place * GROUP + ids % GROUP]

    def multiply(self, x: Tensor, parts: Parts, bias: Tensor | None = None, dtype: Dtype = None) -> Tensor:
        """Multiply x [..., k] by the weight and add a bias [n]; returns `dtype` or, by default, x's type."""
        return native().linear_mxfp4(x if x.is_contiguous() else x.contiguous(), *parts, self.n, self.k, bias, dtype)
