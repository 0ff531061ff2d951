"""Operations with a state: a part for each sequence that passes continue token by token. See native/recurrent.h."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.cpu.program.writer import ProgramWriter, RmsNorm, View, view_fields
from llmctl.cpu.structs import ACTIVATIONS, Activation, OperationKind
from llmctl.cpu.tensors import dtype_codes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StateHeads:
    """The heads of a linear recurrence.

    Attributes:
        count: The number of heads.
        groups: The number of key heads (delta rule) or groups (Mamba 2); each belongs to count / groups adjacent heads.
        size: The elements of a head's values and outputs.
        state_size: The elements of a key. The state of a head is [state_size, size], its size rounded up.
    """

    count: int
    groups: int
    size: int
    state_size: int


@dataclass(frozen=True)
class Steps:
    """The steps of a linear recurrence: softplus(projected + bias). The state decays by exp(-exp(a_log) * step).

    Attributes:
        projected: [heads].
        bias: [heads].
        a_log: [heads].
    """

    projected: View
    bias: "Tensor"
    a_log: "Tensor"


class RecurrentWriter(ProgramWriter):
    """Writes the operations of hybrid families."""

    def causal_conv(
        self, x: View, out: View, weight: "Tensor", bias: "Tensor | None", *, activation: Activation
    ) -> None:
        """Convolve each channel over a sequence's tokens, and apply an activation.

        Args:
            x: The channels.
            out: The results.
            weight: [kernel size, channels]; the last row is the weight of the token itself.
            bias: [channels].
        """
        kernel_size, channels = weight.shape
        self._add(
            "causal_conv",
            **view_fields("input", x),
            output=out.buffer,
            n=channels,
            kernel_size=kernel_size,
            state=self.state((kernel_size - 1, channels), self.dtype),
            activation=ACTIVATIONS.index(activation),
            **self._plain_weight(weight),
            **({} if bias is None else self._bias(bias)),
        )

    def delta_rule(
        self, qkv: View, gate: View, beta: View, out: View, heads: StateHeads, steps: Steps, *, norm: RmsNorm
    ) -> None:
        """Compute the gated delta rule, and the RMS norm of its heads times silu(gate).

        Args:
            qkv: Queries and keys [groups, state_size] each, then values [heads, size].
            gate: [heads, size].
            beta: [heads], before the sigmoid.
            out: [heads, size].
            norm: The norm of a head.
        """
        fields = {**view_fields("other", gate), **view_fields("beta", beta), **self._norm(norm)}
        self._recurrence("delta_rule", qkv, heads, steps, output=out.buffer, n=heads.count * heads.size, **fields)

    def selective_scan(
        self, x: View, heads: StateHeads, steps: Steps, *, skip: "Tensor", step_limit: tuple[float, float]
    ) -> View:
        """Compute the selective scan of Mamba 2. Return a buffer of float32 [heads, size], for `gated_norm`.

        Args:
            x: Values [heads, size], then keys and queries (B and C) [groups, state_size] each.
            skip: [heads], the factors of the values that are added to the results (D).
            step_limit: The limits of a step.
        """
        out = self.buffer(heads.count * heads.size * 4 // self.dtype.itemsize)
        self.tensors.append(skip)
        self._recurrence(
            "selective_scan",
            x,
            heads,
            steps,
            output=out.buffer,
            n=out.stride,
            skip=skip.data_ptr(),
            step_low=step_limit[0],
            step_high=step_limit[1],
        )
        return out

    def gated_norm(
        self, x: View, gate: View, out: View, norm: RmsNorm | None, *, group_size: int = 0, gate_last: bool = False
    ) -> None:
        """Apply an RMS norm to each group of x * silu(gate). x is the result of `selective_scan`.

        Args:
            x: The elements, in float32.
            gate: The gates.
            out: The results.
            norm: The norm; None for the gate only.
            group_size: The elements that are normalised together.
            gate_last: True if the gate multiplies the normalised elements.
        """
        self._add(
            "gated_norm",
            **view_fields("input", x),
            **view_fields("other", gate),
            output=out.buffer,
            n=out.stride,
            head_size=group_size,
            gate_last=gate_last,
            **({} if norm is None else self._norm(norm)),
        )

    def _recurrence(self, kind: OperationKind, x: View, heads: StateHeads, steps: Steps, **fields: Any) -> None:
        import torch

        for vector in (steps.a_log, steps.bias):
            if vector.shape != (heads.count,) or vector.dtype != steps.bias.dtype or not vector.is_contiguous():
                raise ValueError(f"the parameters of a recurrence must be contiguous vectors of {heads.count} floats")
        padded_size = -(-heads.size // 16) * 16
        self.tensors += [steps.a_log, steps.bias]
        self._add(
            kind,
            **view_fields("input", x),
            **view_fields("step", steps.projected),
            heads=heads.count,
            kv_heads=heads.groups,
            head_size=heads.size,
            state_size=heads.state_size,
            state=self.state((heads.count, heads.state_size, padded_size), torch.float32),
            a_log=steps.a_log.data_ptr(),
            step_bias=steps.bias.data_ptr(),
            head_dtype=dtype_codes()[steps.bias.dtype],
            **fields,
        )
