"""Forward functions for the modules of a compiled model. They use the program's operations, so that both round alike.

Beam search, drafts and training run the modules; the engine runs the program.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from llmctl.cpu import kernels
from llmctl.cpu.experts import Experts, Routing
from llmctl.cpu.structs import Activation, NormFlavour

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MlpNames:
    """The parts of a gated MLP.

    Attributes:
        gate_up: The names of the projections: a fused one, or gate and up.
        down: The name of the output projection.
        activation: The activation of the gate.
    """

    gate_up: tuple[str, ...]
    down: str
    activation: Activation


def norm_forward(module: Any, epsilon: float, flavour: NormFlavour, x: "Tensor") -> "Tensor":
    """Compute a norm of x [..., size]."""
    import torch

    native = kernels.load()
    weight: Tensor | None = None if flavour == "no_weight" else module.weight
    needs_gradient = x.requires_grad or (weight is not None and weight.requires_grad)
    if native is None or (torch.is_grad_enabled() and needs_gradient):
        return cast("Tensor", type(module).forward(module, x))
    bias: Tensor | None = getattr(module, "bias", None)
    weight, bias = (None if vector is None else vector.detach() for vector in (weight, bias))
    return native.rms_norm(x, weight, epsilon, flavour, bias)


def activation_forward(module: Any, activation: Activation, x: "Tensor") -> "Tensor":
    """Compute an activation of x [..., size]."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and x.requires_grad):
        return cast("Tensor", type(module).forward(module, x))
    return native.gated_activation(x, torch.ones_like(x), activation)


def gated_mlp_forward(module: Any, names: MlpNames, x: "Tensor") -> "Tensor":
    """Compute a gated MLP of x [..., hidden]."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and x.requires_grad):
        return cast("Tensor", type(module).forward(module, x))
    projected = [getattr(module, name)(x) for name in names.gate_up]
    gate, up = projected if len(projected) == 2 else projected[0].chunk(2, dim=-1)
    return cast("Tensor", getattr(module, names.down)(native.gated_activation(gate, up, names.activation)))


def router_forward(
    module: Any, weight: "Tensor", bias: "Tensor | None", routing: Routing, x: "Tensor", *others: Any
) -> "tuple[Tensor, Tensor, Tensor]":
    """Return logits [tokens, experts] for x [..., hidden], then weights and indices [tokens, top_k] of the experts."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return cast("tuple[Tensor, Tensor, Tensor]", type(module).forward(module, x, *others))
    rows = x.reshape(-1, weight.shape[1]).contiguous()
    logits = native.linear(rows, weight, bias, torch.float32 if routing.float_logits else None)
    experts, weights = native.route(logits, routing, x.dtype)
    return logits, weights.to(x.dtype) if routing.round_weights else weights, experts.long()


def experts_forward(
    module: Any, experts: Experts, x: "Tensor", top_k_index: "Tensor", top_k_weights: "Tensor"
) -> "Tensor":
    """Compute each token's [tokens, hidden] top experts [tokens, top_k]."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and (x.requires_grad or module.gate_up_proj.requires_grad)):
        return cast("Tensor", type(module).forward(module, x, top_k_index, top_k_weights))
    return native.experts(x.contiguous(), experts, top_k_index, top_k_weights)


def gated_shared_expert_forward(module: Any, x: "Tensor") -> "Tensor":
    """Compute a MoE of x [batch, tokens, hidden] whose shared expert has a gate: one number for each token."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and x.requires_grad):
        return cast("Tensor", type(module).forward(module, x))
    rows = x.reshape(-1, x.shape[-1])
    shared = native.gated_activation(module.shared_expert_gate(rows), module.shared_expert(rows), "sigmoid")
    _, weights, indices = module.gate(rows)
    return cast("Tensor", module.experts(rows, indices, weights) + shared).view(x.shape)
