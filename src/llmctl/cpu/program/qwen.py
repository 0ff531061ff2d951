"""Qwen: Llama with sliding windows in some layers. Qwen2 has biases, Qwen3 has q_norm and k_norm; the blocks handle
both.

Qwen2-MoE and Qwen3-MoE have a mixture of experts in most layers and a gated MLP in the others; that of Qwen2-MoE has a
shared expert with a gate. Qwen3-MoE has one window for all layers.
"""

from typing import Any, ClassVar

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import View


class Qwen2(Llama):
    """Builds Qwen2 and Qwen2.5."""

    transformers_class = "Qwen2ForCausalLM"
    # M-RoPE is RoPE for text: its three positions are equal
    text_classes: ClassVar[tuple[str, ...]] = ("Qwen2VLTextModel", "Qwen2_5_VLTextModel", "Qwen2_5OmniThinkerTextModel")

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)


class Qwen3(Qwen2):
    """Builds Qwen3."""

    transformers_class = "Qwen3ForCausalLM"
    text_classes: ClassVar[tuple[str, ...]] = ("Qwen3VLTextModel",)

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type; Qwen3-VL has none."""
        return super().sliding_window(index) if hasattr(self.config, "layer_types") else 0


class Qwen2Moe(Qwen2):
    """Builds Qwen1.5-MoE and Qwen2-MoE."""

    transformers_class = "Qwen2MoeForCausalLM"
    blocks: ExpertBlocks

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, or of the gated MLP in a layer without experts."""
        if not hasattr(module, "experts"):
            return self.blocks.gated_mlp(module, x)
        routing = rounded_softmax(module.gate)
        return self.blocks.moe_with_gated_shared_expert(module, x, routing, router_class="Qwen2MoeTopKRouter")


class Qwen3Moe(Llama):
    """Builds Qwen3-MoE."""

    transformers_class = "Qwen3MoeForCausalLM"
    text_classes: ClassVar[tuple[str, ...]] = ("Qwen3VLMoeTextModel",)
    blocks: ExpertBlocks

    def sliding_window(self, index: int) -> int:
        """Return the window of the configuration."""
        return self.config.sliding_window or 0

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, or of the gated MLP in a layer without experts."""
        if not hasattr(module, "experts"):
            return self.blocks.gated_mlp(module, x)
        is_vl = type(self.body).__name__ == "Qwen3VLMoeTextModel"
        router_class = "Qwen3VLMoeTextTopKRouter" if is_vl else "Qwen3MoeTopKRouter"
        return self.blocks.moe(module, x, rounded_softmax(module.gate), router=module.gate, router_class=router_class)


def rounded_softmax(router: Any) -> Routing:
    """Return the routing of Qwen's MoE and of others that copied it: weights are rounded to the model's dtype.

    Weights are normalised unless the router says otherwise.
    """
    normalize = getattr(router, "norm_topk_prob", True)
    return Routing(len(router.weight), router.top_k, normalize=normalize, round_weights=True)
