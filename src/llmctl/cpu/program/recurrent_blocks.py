"""The building blocks of hybrid families: layers that continue a state instead of reading a KV cache."""

from typing import TYPE_CHECKING, Any

from llmctl.cpu.program.blocks import Blocks, UnexpectedModuleError, expect_children
from llmctl.cpu.program.writer import View
from llmctl.cpu.structs import Activation

if TYPE_CHECKING:
    from torch import Tensor


class RecurrentBlocks(Blocks):
    """Adds blocks with a state per sequence. The states are in `ProgramWriter.state_shapes`."""

    def short_conv(self, module: Any, x: View) -> View:
        """Compute LFM2's short convolution: out_proj(C * conv(B * x)), where in_proj gives B, C and x."""
        expect_children(module, "in_proj", "conv", "out_proj")
        width, write = self._hidden_size, self.writer
        projected = self._linear(module.in_proj, x, "in_proj")
        if projected.stride != 3 * width:
            raise UnexpectedModuleError("a projection that does not match the convolution")
        before, after, values = projected, projected.after(width), projected.after(2 * width)
        gated, convolved = self._buffer("gated", width), self._buffer("convolved", width)
        write.gated_activation(before, values, gated, width=width, activation="identity")
        self._causal_conv(module.conv, gated, convolved, activation="identity")
        write.gated_activation(after, convolved, gated, width=width, activation="identity")
        return self._linear(module.out_proj, gated, "sublayer_output")

    def _causal_conv(self, module: Any, x: View, out: View, *, activation: Activation) -> None:
        weight = _conv_weight(module, out.stride)
        bias = None if module.bias is None else module.bias.detach()
        self.writer.causal_conv(x, out, weight, bias, activation=activation)


def _conv_weight(module: Any, channels: int) -> "Tensor":
    """Return a copy of a convolution's weight as [kernel size, channels]."""
    from torch import nn

    expect_children(module)
    if type(module) is not nn.Conv1d or module.groups != channels or module.in_channels != channels:
        raise UnexpectedModuleError(f"{type(module).__name__} as a convolution of {channels} channels")
    if module.stride != (1,) or module.dilation != (1,) or module.weight.shape[:2] != (channels, 1):
        raise UnexpectedModuleError("a convolution with gaps")
    weight: Tensor = module.weight.detach().squeeze(1).t().contiguous()
    return weight
