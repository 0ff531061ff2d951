"""Experts of mixtures of experts (MoE), computed by llmctl's kernels: packed in 4 or 8 bits, or as torch stores them.

transformers keeps the experts of a layer in one module, in which each projection is one tensor. Packed experts are one
tensor of bytes for each projection, with a row per expert.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.cpu.experts import ExpertActivation, Experts
from llmctl.cpu.layers import Packed, native
from llmctl.cpu.structs import Activation
from llmctl.transformers_compat import gate_experts, has_default_gate

# transformers' activations that the kernels know
ACTIVATION_OF: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "GELUActivation": "gelu",
    "ReLUSquaredActivation": "relu_squared",
    "silu": "silu",  # torch's function
}
EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")
_CLAMPED_SWIGLU = ("GptOssExperts",)  # classes that have this activation, with its `alpha` and `limit`


def has_expert_layout(module: nn.Module) -> bool:
    """Return True if a module holds experts with gate_up_proj and down_proj, and biases for both or none.

    transformers marks the layout on the module (integrations/moe.py, `use_experts_implementation`).
    """
    return (
        hasattr(module, "is_concatenated")
        and getattr(module, "has_gate", None) is True
        and not getattr(module, "has_post_expert_norm", False)
        and all(getattr(module, name, torch.empty(0)).dim() == 3 for name in EXPERT_WEIGHTS)
        and all(hasattr(module, f"{name}_bias") == bool(module.has_bias) for name in EXPERT_WEIGHTS)
    )


def pack_experts(module: Any, packed_class: type[Packed], bits: int) -> None:
    """Replace the weights of an experts module by empty packed ones, and its forward by one that reads them."""
    module.packed = {}
    for name in EXPERT_WEIGHTS:
        count, n, k = getattr(module, name).shape
        packed = module.packed[name] = packed_class(bits, *((k, n) if module.is_transposed else (n, k)))
        empty = torch.empty((count, packed.size_bytes), dtype=torch.uint8)
        setattr(module, name, nn.Parameter(empty, requires_grad=False))
    module.forward = partial(_experts_forward, module)


def experts_of(module: Any) -> Experts | None:
    """Return the experts of a module as the kernels read them; None if they cannot.

    Experts that torch stores as [inputs, outputs] are first transposed in memory; the parameters keep their shapes.
    """
    activation = _activation_of(module)
    if activation is None:
        return None
    gate_up_bias, down_bias = (
        getattr(module, f"{name}_bias").detach() if module.has_bias else None for name in EXPERT_WEIGHTS
    )
    packed = getattr(module, "packed", None)
    if packed is not None:
        down = packed["down_proj"]
        if not down.has_native_layout:
            return None
        gate_up_proj, down_proj = (getattr(module, name).detach() for name in EXPERT_WEIGHTS)
        sizes = down.n, down.k
        return Experts(
            gate_up_proj, down_proj, *sizes, activation, down.bits, gate_up_bias, down_bias, encoding=down.encoding
        )
    gate_up_proj, down_proj = (
        _outputs_first(getattr(module, name), is_transposed=module.is_transposed) for name in EXPERT_WEIGHTS
    )
    _, hidden, intermediate = down_proj.shape
    return Experts(gate_up_proj, down_proj, hidden, intermediate, activation, 0, gate_up_bias, down_bias)


def llama4_experts_of(module: Any) -> Experts | None:
    """Return Llama 4's experts, whose weights [experts, inputs, outputs] transformers multiplies by all tokens."""
    activation = ACTIVATION_OF.get(type(module.act_fn).__name__)
    if type(module).__name__ != "Llama4TextExperts" or activation is None:
        return None
    return _stacked(module, EXPERT_WEIGHTS, ExpertActivation(activation), is_transposed=True, weighs_inputs=True)


def ungated_experts_of(module: Any) -> Experts | None:
    """Return experts with up_proj and down_proj only, those of Nemotron-H."""
    activation = ACTIVATION_OF.get(type(module.act_fn).__name__)
    if getattr(module, "has_gate", None) is not False or module.has_bias or activation is None:
        return None
    gate = ExpertActivation(activation, is_gated=False)
    return _stacked(module, ("up_proj", "down_proj"), gate, is_transposed=module.is_transposed)


def _stacked(
    module: Any,
    names: tuple[str, str],
    activation: ExpertActivation,
    *,
    is_transposed: bool,
    weighs_inputs: bool = False,
) -> Experts | None:
    """Return experts from parameters that `pack_stacks` may have packed."""
    up_proj, down_proj = (module._parameters[name] for name in names)
    packed = getattr(module, "packed", None)
    if packed is None:
        up_proj, down_proj = (_outputs_first(one, is_transposed=is_transposed) for one in (up_proj, down_proj))
        _, hidden, intermediate = down_proj.shape
        return Experts(up_proj, down_proj, hidden, intermediate, activation, weighs_inputs=weighs_inputs)
    if set(packed) != set(names) or not packed[names[1]].has_native_layout:
        return None
    down = packed[names[1]]
    weights = up_proj.detach(), down_proj.detach()
    return Experts(*weights, down.n, down.k, activation, down.bits, weighs_inputs=weighs_inputs)


def _outputs_first(parameter: nn.Parameter, *, is_transposed: bool) -> Tensor:
    """Return a weight [experts, outputs, inputs]."""
    if not is_transposed:
        return parameter.detach()
    if parameter.is_contiguous():
        parameter.data = parameter.data.transpose(1, 2).contiguous().transpose(1, 2)
    return parameter.detach().transpose(1, 2)


def _activation_of(module: Any) -> ExpertActivation | None:
    is_interleaved = not module.is_concatenated
    if type(module).__name__ in _CLAMPED_SWIGLU:
        return ExpertActivation("clamped_swiglu", is_interleaved, float(module.alpha), float(module.limit))
    function = getattr(module, "act_fn", None)
    activation = ACTIVATION_OF.get(getattr(function, "__name__", type(function).__name__))
    if activation is None or not has_default_gate(module):
        return None
    return ExpertActivation(activation, is_interleaved)


def _experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute each token's [tokens, hidden] top experts [tokens, top_k], as transformers' experts modules do."""
    experts = experts_of(module)
    if experts is not None:
        return native().experts(hidden_states.contiguous(), experts, top_k_index, top_k_weights)
    out = torch.zeros_like(hidden_states)
    gate_up_proj, down_proj = module.packed["gate_up_proj"], module.packed["down_proj"]
    biases = [getattr(module, f"{name}_bias") if module.has_bias else None for name in EXPERT_WEIGHTS]
    for expert in torch.unique(top_k_index).tolist():
        if expert >= len(module.gate_up_proj):
            continue  # transformers marks a token without an expert like this
        token, position = torch.where(top_k_index == expert)
        gate_up_bias, down_bias = (None if bias is None else bias[expert] for bias in biases)
        gate_up_parts = gate_up_proj.parts(module.gate_up_proj[expert])
        gated = gate_experts(module, gate_up_proj.multiply(hidden_states[token], gate_up_parts, gate_up_bias))
        result = down_proj.multiply(gated, down_proj.parts(module.down_proj[expert]), down_bias)
        out.index_add_(0, token, (result * top_k_weights[token, position, None]).to(out.dtype))
    return out
