"""Modules of a model with a program, computed by the program's own operations: both ways round alike."""

from typing import TYPE_CHECKING, Any, cast

from llmctl.cpu import kernels
from llmctl.cpu.operations import Activation, NormFlavour

if TYPE_CHECKING:
    from torch import Tensor


def norm_forward(module: Any, epsilon: float, flavour: NormFlavour, x: "Tensor") -> "Tensor":
    """x [..., width] normed."""
    import torch

    found = kernels.load()
    if found is None or (torch.is_grad_enabled() and (x.requires_grad or module.weight.requires_grad)):
        return cast("Tensor", type(module).forward(module, x))
    return found.rms_norm(x, module.weight.detach(), epsilon, flavour)


def gated_forward(module: Any, activation: Activation, x: "Tensor") -> "Tensor":
    """An MLP with a gate: x [..., hidden] to [..., hidden]."""
    import torch

    found = kernels.load()
    if found is None or (torch.is_grad_enabled() and x.requires_grad):
        return cast("Tensor", type(module).forward(module, x))
    if hasattr(module, "gate_up_proj"):
        gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    else:
        gate, up = module.gate_proj(x), module.up_proj(x)
    return cast("Tensor", module.down_proj(found.gated(gate, up, activation)))


def router_forward(module: Any, how: dict[str, bool], x: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """x [..., hidden] to logits [tokens, experts], shares [tokens, chosen] and experts [tokens, chosen]."""
    import torch

    found = kernels.load()
    if found is None or (torch.is_grad_enabled() and (x.requires_grad or module.weight.requires_grad)):
        return cast("tuple[Tensor, Tensor, Tensor]", type(module).forward(module, x))
    logits = found.linear(x.reshape(-1, module.hidden_dim).contiguous(), module.weight.detach())
    experts, shares = found.route(logits, module.top_k, **how)
    return logits, shares.to(x.dtype) if how["rounded"] else shares, experts.long()
