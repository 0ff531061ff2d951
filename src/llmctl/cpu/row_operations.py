"""The operations between matrix products, and mixtures of experts, applied to tensors as a program computes them."""

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmctl.cpu.experts import Experts, Routing
from llmctl.cpu.structs import ACTIVATIONS, NORM_FLAVOURS, Activation, NormFlavour, Operation
from llmctl.cpu.tensors import check_vector, dtype_codes, row_count

if TYPE_CHECKING:
    from torch import Tensor, dtype


class RowOperations:
    """The part of `Kernels` for the modules of a compiled model. Tensors are as `Kernels` says."""

    _library: ctypes.CDLL

    def threads(self) -> int:
        """Return the number of threads."""
        raise NotImplementedError

    def rms_norm(
        self,
        x: "Tensor",
        weight: "Tensor | None",
        epsilon: float,
        flavour: NormFlavour,
        bias: "Tensor | None" = None,
    ) -> "Tensor":
        """Apply a norm with weights [width] to x [..., width], as a program does.

        Args:
            weight: None for the flavour `no_weight`.
            flavour: `norm_then_weight` rounds before it multiplies by the weights (Llama); `one_plus_weight` (Gemma)
                and `weight_then_round` (OLMo) round once; `layer_norm` subtracts the mean first, then rounds once.
            bias: [width], of a layer norm.
        """
        codes = dtype_codes()
        width = x.shape[-1]
        check_vector(weight, width, "weight")
        check_vector(bias, width)
        if (weight is None) != (flavour == "no_weight"):
            raise ValueError(f"a norm of the flavour {flavour} must have weights, except no_weight")
        x = x if x.is_contiguous() else x.contiguous()
        rows, y = row_count(x, width), x.new_empty(x.shape)
        self._library.llmctl_rms_norm(
            x.data_ptr(),
            codes[x.dtype],
            rows,
            width,
            None if weight is None else weight.data_ptr(),
            0 if weight is None else codes[weight.dtype],
            None if bias is None else bias.data_ptr(),
            0 if bias is None else codes[bias.dtype],
            NORM_FLAVOURS.index(flavour),
            epsilon,
            y.data_ptr(),
            self.threads(),
        )
        return y

    def gated_activation(self, gate: "Tensor", up: "Tensor", activation: Activation) -> "Tensor":
        """Return activation(gate) * up for up [..., width], as a program does.

        Args:
            gate: [..., gates], each for an equal part of a row.
            up: [..., width].
            activation: The activation of the gates.
        """
        gate, up = gate.contiguous(), up.contiguous()
        width = up.shape[-1]
        rows, y = row_count(up, width), up.new_empty(up.shape)
        if gate.shape[:-1] != up.shape[:-1] or width % max(gate.shape[-1], 1) or up.dtype != gate.dtype:
            raise ValueError(f"gate {tuple(gate.shape)} and up {tuple(up.shape)} do not match")
        self._library.llmctl_gated_activation(
            gate.data_ptr(),
            up.data_ptr(),
            dtype_codes()[gate.dtype],
            rows,
            width,
            gate.shape[-1],
            ACTIVATIONS.index(activation),
            y.data_ptr(),
            self.threads(),
        )
        return y

    def activation(self, x: "Tensor", activation: Activation, numbers: "Mapping[str, float] | None" = None) -> "Tensor":
        """Return the activation of x [..., width], as a program does.

        Args:
            numbers: The fields of `Operation` with the numbers of an activation that has some.
        """
        x = x.contiguous()
        rows, y = row_count(x, x.shape[-1]), x.new_empty(x.shape)
        op = Operation(n=x.shape[-1], activation=ACTIVATIONS.index(activation), **(numbers or {}))
        self._library.llmctl_activation(
            ctypes.byref(op), x.data_ptr(), dtype_codes()[x.dtype], rows, y.data_ptr(), self.threads()
        )
        return y

    def route(self, logits: "Tensor", routing: Routing, dtype: "dtype | None" = None) -> "tuple[Tensor, Tensor]":
        """Choose the top experts of each token by the router's logits [tokens, experts], as a program does.

        Args:
            dtype: The dtype to which weights are rounded, if `routing` says so; by default that of the logits.

        Returns:
            Indices (int32) and weights (float32), both [tokens, top_k], the top expert first.
        """
        import torch

        rows = row_count(logits, routing.experts)
        if routing.float_logits and logits.dtype != torch.float32:
            raise ValueError("the logits must be float32")
        top_experts = logits.new_empty((rows, routing.top_k), dtype=torch.int32)
        top_weights = logits.new_empty((rows, routing.top_k), dtype=torch.float32)
        self._library.llmctl_route(
            ctypes.byref(Operation(**routing.fields())),
            logits.data_ptr(),
            dtype_codes()[dtype or logits.dtype],
            rows,
            top_experts.data_ptr(),
            top_weights.data_ptr(),
            self.threads(),
        )
        return top_experts, top_weights

    def experts(self, x: "Tensor", experts: Experts, top_experts: "Tensor", top_weights: "Tensor") -> "Tensor":
        """Return the weighted sum of each token's experts, as a program computes it.

        Args:
            x: Hidden states [tokens, hidden].
            top_experts: Indices [tokens, top_k]. An index without an expert is left out.
            top_weights: Weights [tokens, top_k].
        """
        import torch

        rows, y = row_count(x, experts.hidden), x.new_empty(x.shape)
        top_experts, top_weights = top_experts.int().contiguous(), top_weights.float().contiguous()
        if x.ndim != 2 or top_experts.shape != top_weights.shape or top_experts.shape[:-1] != (rows,):
            raise ValueError("every token needs as many weights as experts")
        if any(tensor.device != torch.device("cpu") for tensor in (top_experts, top_weights)):
            raise ValueError("all tensors must be on the CPU")
        self._library.llmctl_experts(
            ctypes.byref(Operation(**experts.fields(), top_k=top_experts.shape[-1])),
            x.data_ptr(),
            dtype_codes()[x.dtype],
            rows,
            top_experts.data_ptr(),
            top_weights.data_ptr(),
            y.data_ptr(),
            self.threads(),
        )
        return y
