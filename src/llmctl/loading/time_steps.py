"""The bounds of the time steps of Mamba 2 layers, for prompts and single tokens alike."""

import math
from typing import Any


def bound_time_steps(model: Any) -> None:
    """Let Mamba 2 layers bound the time step of every token.

    transformers bounds it where several tokens are computed together, not in the update for one token (Nemotron-H and
    Zamba 2 bound it from below by 0.001). An answer then depends on how a prompt is divided into passes, by some 0.01
    in log-probabilities. softplus is monotonic, so that a bound of softplus(dt + bias) is one of dt.
    """
    for module in model.modules():
        limits = getattr(module, "time_step_limit", None)
        parts = (getattr(module, name, None) for name in ("in_proj", "dt_bias", "num_heads"))
        if limits is None or any(part is None for part in parts) or hasattr(module, "mup_vector"):
            continue
        low, high = (_before_softplus(float(limit)) for limit in limits)
        if low > -math.inf or high < math.inf:
            module.in_proj.register_forward_hook(_bounded(module.dt_bias, low, high, heads=module.num_heads))


def _bounded(bias: Any, low: float, high: float, *, heads: int) -> Any:
    """Return a forward hook that bounds the last columns of a projection, which are the time steps of the heads."""

    def bound(_module: Any, _inputs: Any, output: Any) -> Any:
        import torch

        steps = output[..., -heads:]
        shift = bias.to(steps.dtype)
        return torch.cat((output[..., :-heads], steps.clamp(low - shift, high - shift)), dim=-1)

    return bound


def _before_softplus(step: float) -> float:
    """Return x with softplus(x) = step."""
    if step <= 0:
        return -math.inf
    return step if math.isinf(step) or step > 30 else math.log(math.expm1(step))
