"""Qwen: Llama with sliding windows in some layers. Qwen2 has biases, Qwen3 has q_norm and k_norm; the blocks handle
both.

Qwen3-MoE has a mixture of experts in most layers, a gated MLP in the others, and one window for all layers.
"""

from typing import Any

from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import View


class Qwen2(Llama):
    """Builds Qwen2 and Qwen2.5."""

    transformers_class = "Qwen2ForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)


class Qwen3(Qwen2):
    """Builds Qwen3."""

    transformers_class = "Qwen3ForCausalLM"


class Qwen3Moe(Llama):
    """Builds Qwen3-MoE."""

    transformers_class = "Qwen3MoeForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the configuration."""
        return self.config.sliding_window or 0

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, or of the gated MLP in a layer without experts."""
        if not hasattr(module, "experts"):
            return self.blocks.gated_mlp(module, x)
        normalize = module.gate.norm_topk_prob
        return self.blocks.moe(module, x, router_class="Qwen3MoeTopKRouter", normalize=normalize, round_weights=True)
