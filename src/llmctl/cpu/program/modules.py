"""Forward functions for the modules of a compiled model. They use the program's operations, so that both round alike.

Beam search, drafts and training run the modules; the engine runs the program.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from llmctl.cpu import kernels
from llmctl.cpu.experts import Experts, Routing
from llmctl.cpu.structs import Activation, NormFlavour
from llmctl.transformers_compat import returns_indices_first

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MlpNames:
    """The parts of a gated MLP.

    Attributes:
        gate_up: The names of the projections: a fused one, or gate and up.
        down: The name of the output projection.
        activation: The activation of the gate.
        gate_multiplier: The factor of the gate.
        down_multiplier: The factor of the output.
    """

    gate_up: tuple[str, ...]
    down: str
    activation: Activation
    gate_multiplier: float = 1.0
    down_multiplier: float = 1.0


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


def activation_forward(module: Any, activation: Activation, numbers: Mapping[str, float], x: "Tensor") -> "Tensor":
    """Compute an activation of x [..., size]."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and x.requires_grad):
        return cast("Tensor", type(module).forward(module, x))
    return native.activation(x, activation, numbers)


def activation_numbers(module: Any) -> dict[str, float]:
    """Return the numbers of an activation, as fields of `Operation`. Only xIELU has some, which are learned."""
    from torch.nn.functional import softplus

    if not hasattr(module, "alpha_p"):
        return {}
    alpha, negative_alpha = softplus(module.alpha_p.detach()), module.beta + softplus(module.alpha_n.detach())
    return {"alpha": float(alpha), "negative_alpha": float(negative_alpha), "slope": float(module.beta)}


def gated_mlp_forward(module: Any, names: MlpNames, x: "Tensor") -> "Tensor":
    """Compute a gated MLP of x [..., hidden]."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and x.requires_grad):
        return cast("Tensor", type(module).forward(module, x))
    projected = [getattr(module, name)(x) for name in names.gate_up]
    gate, up = projected if len(projected) == 2 else projected[0].chunk(2, dim=-1)
    gate = gate if names.gate_multiplier == 1.0 else gate * names.gate_multiplier
    output: Tensor = getattr(module, names.down)(native.gated_activation(gate, up, names.activation))
    return output if names.down_multiplier == 1.0 else output * names.down_multiplier


def router_forward(
    module: Any, weight: "Tensor", bias: "Tensor | None", routing: Routing, x: "Tensor", *others: Any
) -> "tuple[Tensor, Tensor, Tensor]":
    """Return logits [tokens, experts] for x [..., hidden], then weights and indices [tokens, top_k] of the experts.

    In the order of the module's own class.
    """
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return cast("tuple[Tensor, Tensor, Tensor]", type(module).forward(module, x, *others))
    rows = x.reshape(-1, weight.shape[1]).contiguous()
    logits = native.linear(rows, weight, bias, torch.float32 if routing.float_logits else None)
    experts, weights = native.route(logits, routing, x.dtype)
    weights = weights.to(x.dtype) if routing.round_weights else weights
    if returns_indices_first(type(module).forward):
        return experts.long(), weights, logits
    return logits, weights, experts.long()


def experts_forward(
    module: Any, experts: Experts, x: "Tensor", top_k_index: "Tensor", top_k_weights: "Tensor"
) -> "Tensor":
    """Compute each token's [tokens, hidden] top experts [tokens, top_k]."""
    import torch

    native = kernels.load()
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or _has_gradients(module))
    if native is None or (needs_gradient and not hasattr(module, "packed")):  # torch cannot read packed weights
        return cast("Tensor", type(module).forward(module, x, top_k_index, top_k_weights))
    return native.experts(x.contiguous(), experts, top_k_index, top_k_weights)


def _has_gradients(module: Any) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def weighed_inputs_forward(
    module: Any, weight: "Tensor", routing: Routing, experts: Experts, x: "Tensor"
) -> "tuple[Tensor, Tensor]":
    """Compute Llama 4's MoE of x [..., hidden]. Return [tokens, hidden] and the router's logits."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return cast("tuple[Tensor, Tensor]", type(module).forward(module, x))
    rows = x.reshape(-1, weight.shape[1]).contiguous()
    logits = native.linear(rows, weight)
    indices, weights = native.route(logits, routing)
    return native.experts(rows, experts, indices, weights) + module.shared_expert(rows), logits


def normed_router_forward(module: Any, routing: Routing, x: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """Return probabilities [tokens, experts] for x [tokens, hidden], then weights and indices [tokens, top_k]."""
    import torch

    native = kernels.load()
    if native is None or (torch.is_grad_enabled() and (x.requires_grad or module.scale.requires_grad)):
        return cast("tuple[Tensor, Tensor, Tensor]", type(module).forward(module, x))
    logits = module.proj(module.norm(x) * module.scale * module.scalar_root_size)
    indices, weights = native.route(logits, routing)
    return torch.softmax(logits, dim=-1, dtype=torch.float32), weights, indices.long()


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
