"""The building blocks of hybrid families: layers that continue a state instead of reading a KV cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmctl.cpu.program.blocks import UnexpectedModuleError, expect_children
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.recurrent_writer import RecurrentWriter, StateHeads, Steps
from llmctl.cpu.program.writer import RmsNorm, View
from llmctl.cpu.structs import Activation

if TYPE_CHECKING:
    from torch import Tensor


class RecurrentBlocks(ExpertBlocks):
    """Adds blocks with a state per sequence. The states are in `ProgramWriter.state_shapes`."""

    writer: RecurrentWriter

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

    def gated_delta_net(self, module: Any, x: View) -> View:
        """Compute Qwen 3.5's gated delta net: a convolution of q, k and v, the gated delta rule, a norm and a gate."""
        projections = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        expect_children(module, *projections, "conv1d", "norm", "out_proj")
        qkv, gate, beta, steps = (self._linear(getattr(module, name), x, name) for name in projections)
        return self._delta_rule(module, qkv, gate, beta, steps)

    def grouped_delta_net(self, module: Any, x: View) -> View:
        """Compute Qwen3-Next's gated delta net, whose projections have the parts of a key head side by side."""
        expect_children(module, "in_proj_qkvz", "in_proj_ba", "conv1d", "norm", "out_proj")
        groups, shared = module.num_k_heads, module.num_v_heads // module.num_k_heads
        key, value = module.head_k_dim, shared * module.head_v_dim
        qkvz = self._linear(module.in_proj_qkvz, x, "in_proj_qkvz")
        ba = self._linear(module.in_proj_ba, x, "in_proj_ba")
        qkv = self._buffer("qkv", groups * (2 * key + value))
        gate = self._buffer("z", groups * value)
        beta, steps = self._buffer("b", groups * shared), self._buffer("a", groups * shared)
        parts = [(qkv, key), (qkv.after(groups * key), key), (qkv.after(2 * groups * key), value), (gate, value)]
        self._ungroup(qkvz, parts, groups)
        self._ungroup(ba, [(beta, shared), (steps, shared)], groups)
        return self._delta_rule(module, qkv, gate, beta, steps)

    def mamba2(self, module: Any, x: View, *, multipliers: Sequence[tuple[int, float]] = ()) -> View:
        """Compute a Mamba 2 layer: a convolution of x, B and C, the selective scan, a gated norm or only the gate.

        Args:
            module: The Mamba 2 module.
            x: The normalised hidden states.
            multipliers: Sizes of the parts of in_proj's output, and a factor of each.
        """
        expect_children(module, "in_proj", "act", "conv1d", "norm", "out_proj")
        heads = StateHeads(module.num_heads, module.n_groups, module.head_dim, module.ssm_state_size)
        width = heads.count * heads.size
        channels = width + 2 * heads.groups * heads.state_size
        gate = self._linear(module.in_proj, x, "in_proj")
        if gate.stride != width + channels + heads.count or module.activation != "silu":
            raise UnexpectedModuleError("a projection that does not match the heads")
        offset = 0
        for size, factor in multipliers:
            if factor != 1.0:
                self.writer.scale(gate.after(offset), factor, width=size)
            offset += size
        convolved, normed = self._buffer("convolved", channels), self._buffer("scanned", width)
        self._causal_conv(module.conv1d, gate.after(width), convolved, activation="silu")
        bias, a_log, skip = _vectors(module, ("dt_bias", "A_log", "D"), heads.count)
        steps, limits = Steps(gate.after(width + channels), bias, a_log), module.time_step_limit
        scanned = self.writer.selective_scan(convolved, heads, steps, skip=skip, step_limit=limits)
        if type(module.norm).__name__ == "Identity":
            self.writer.gated_norm(scanned, gate, normed, None)
        else:
            groups = getattr(module.norm, "n_groups", None)
            group_size = getattr(module.norm, "group_size", width) if groups is None else width // groups
            gate_last = getattr(module.norm, "norm_before_gate", False)
            norm = self._gated_norm(module.norm, width)
            self.writer.gated_norm(scanned, gate, normed, norm, group_size=group_size, gate_last=gate_last)
        return self._linear(module.out_proj, normed, "sublayer_output")

    def _delta_rule(self, module: Any, qkv: View, gate: View, beta: View, steps: View) -> View:
        heads = StateHeads(module.num_v_heads, module.num_k_heads, module.head_v_dim, module.head_k_dim)
        width = heads.count * heads.size
        channels = 2 * heads.groups * heads.state_size + width
        strides = (qkv.stride, gate.stride, beta.stride, steps.stride)
        if strides != (channels, width, heads.count, heads.count) or module.activation != "silu":
            raise UnexpectedModuleError("projections that do not match the heads")
        convolved, out = self._buffer("convolved", channels), self._buffer("recalled", width)
        self._causal_conv(module.conv1d, qkv, convolved, activation="silu")
        step = Steps(steps, *_vectors(module, ("dt_bias", "A_log"), heads.count))
        self.writer.delta_rule(convolved, gate, beta, out, heads, step, norm=self._gated_norm(module.norm, heads.size))
        return self._linear(module.out_proj, out, "sublayer_output")

    def _ungroup(self, x: View, parts: list[tuple[View, int]], groups: int) -> None:
        """Copy the parts of x [groups, sum of the sizes] to separate views [groups, size]."""
        stride, offset = sum(size for _, size in parts), 0
        for out, size in parts:
            self.writer.prepare_heads(x.after(offset), out, heads=groups, size=size, head_stride=stride)
            offset += size

    def _gated_norm(self, module: Any, size: int) -> RmsNorm:
        expect_children(module)
        if not type(module).__name__.endswith("RMSNormGated") or module.weight.shape != (size,):
            raise UnexpectedModuleError(type(module).__name__)
        return RmsNorm(size, module.weight.detach(), module.variance_epsilon, "norm_then_weight")

    def _causal_conv(self, module: Any, x: View, out: View, *, activation: Activation) -> None:
        weight = _conv_weight(module, out.stride)
        bias = None if module.bias is None else module.bias.detach()
        self.writer.causal_conv(x, out, weight, bias, activation=activation)


def _vectors(module: Any, names: tuple[str, ...], count: int) -> "list[Tensor]":
    """Return parameters with one number per head. Raises UnexpectedModuleError unless they have the same dtype."""
    vectors = [getattr(module, name).detach() for name in names]
    if len({vector.dtype for vector in vectors}) != 1 or any(vector.shape != (count,) for vector in vectors):
        raise UnexpectedModuleError(f"{', '.join(names)} that do not match the heads")
    return vectors


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
