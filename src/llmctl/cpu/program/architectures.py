"""The architectures that are known, class by class, with what differs from Llama."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmctl.cpu.operations import NormFlavour


@dataclass(frozen=True)
class Architecture:
    """How a model's classes differ from Llama's.

    Attributes:
        norm: How the weights of norms are applied.
        has_four_norms: Whether attention and MLP are normed before and after (Gemma).
        scale: What attention scores are multiplied by, from the configuration and a head's width.
        window: A token sees so many of a layer; 0 for all.
        turns: Whether a layer's queries and keys are turned.
        residual, embedding, logits: What these are multiplied by.
        angles: Kinds of angles, by type of layer; None where there is one kind.
    """

    norm: NormFlavour = "norm_then_weight"
    has_four_norms: bool = False
    scale: Callable[[Any, int], float] = lambda config, width: width**-0.5
    window: Callable[[Any, int], int] = lambda config, layer: 0
    turns: Callable[[Any, int], bool] = lambda config, layer: True
    residual: Callable[[Any], float] = lambda config: 1.0
    embedding: Callable[[Any], float] = lambda config: 1.0
    logits: Callable[[Any], float] = lambda config: 1.0
    angles_by_type: bool = False


def _everywhere(config: Any, _: int) -> int:
    return getattr(config, "sliding_window", None) or 0


def _by_type(config: Any, layer: int) -> int:
    return (config.sliding_window or 0) if config.layer_types[layer] == "sliding_attention" else 0


_GEMMA = Architecture(
    norm="one_plus_weight",
    has_four_norms=True,
    scale=lambda config, width: config.query_pre_attn_scalar**-0.5,
    window=_by_type,
)
KNOWN = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(window=_everywhere),
    "Qwen2ForCausalLM": Architecture(window=_by_type),
    "Qwen3ForCausalLM": Architecture(window=_by_type),
    "MixtralForCausalLM": Architecture(window=_everywhere),
    "Qwen3MoeForCausalLM": Architecture(window=_everywhere),
    "Phi3ForCausalLM": Architecture(window=_everywhere),
    "SmolLM3ForCausalLM": Architecture(
        window=lambda config, layer: _by_type(config, layer) if config.use_sliding_window else 0,
        turns=lambda config, layer: bool(config.no_rope_layers[layer]),
    ),
    "Gemma3ForCausalLM": Architecture(**{**vars(_GEMMA), "angles_by_type": True}),
    "GraniteForCausalLM": Architecture(
        scale=lambda config, width: config.attention_multiplier,
        residual=lambda config: config.residual_multiplier,
        embedding=lambda config: config.embedding_multiplier,
        logits=lambda config: 1 / config.logits_scaling,
    ),
}
# transformers' routers, and whether they round a token's shares
ROUTERS = {"MixtralTopKRouter": False, "Qwen3MoeTopKRouter": True}
