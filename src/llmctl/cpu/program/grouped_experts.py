"""Families with DeepSeek's mixture of experts but ordinary attention: GLM-4.5, dots.llm1, MiniMax-M2, ERNIE 4.5.

The router's logits are float32, and a correction of their scores, which balances the experts, decides about the choice
but not about the weights. Most have shared experts, and gated MLPs in the first layers.
"""

from typing import Any, ClassVar

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import Rope, View


class Glm4Moe(Llama):
    """Builds GLM-4.5 and GLM-4.6."""

    transformers_class = "Glm4MoeForCausalLM"
    router_class: ClassVar[str] = "Glm4MoeTopkRouter"
    blocks: ExpertBlocks

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, or of the gated MLP in a layer without experts."""
        if not hasattr(module, "experts"):
            return self.blocks.gated_mlp(module, x)
        return self.blocks.moe(
            module,
            x,
            self.routing(module),
            router=module.gate,
            router_class=self.router_class,
            shared_experts=self.shared_experts(module),
        )

    def routing(self, module: Any) -> Routing:
        """Return the arithmetic of the router: sigmoids, with a correction and groups."""
        router = module.gate
        return Routing(
            len(router.weight),
            router.top_k,
            scoring="sigmoid",
            normalize=router.norm_topk_prob,
            correction=router.e_score_correction_bias,
            groups=router.num_group,
            top_groups=router.topk_group,
            multiplier=router.routed_scaling_factor,
            epsilon=1e-20,
            float_logits=True,
        )

    def shared_experts(self, module: Any) -> str | None:
        """Return the name of the shared experts in the MoE module."""
        return "shared_experts"


class Dots1(Glm4Moe):
    """Builds dots.llm1."""

    transformers_class = "Dots1ForCausalLM"
    router_class = "Dots1TopkRouter"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)


class MiniMaxM2(Glm4Moe):
    """Builds MiniMax-M2, which normalises all heads together."""

    transformers_class = "MiniMaxM2ForCausalLM"
    router_class = "MiniMaxM2TopKRouter"

    def routing(self, module: Any) -> Routing:
        """Return the arithmetic of the router: sigmoids of logits in the model's dtype, with a correction."""
        count, correction = len(module.gate.weight), module.e_score_correction_bias
        return Routing(count, module.gate.top_k, scoring="sigmoid", normalize=True, correction=correction)

    def shared_experts(self, module: Any) -> str | None:
        """Return None: MiniMax-M2 has no shared experts."""
        return None


class Ernie45Moe(Glm4Moe):
    """Builds ERNIE 4.5 with experts, whose router has a softmax. RoPE rotates neighbours, in float32."""

    transformers_class = "Ernie4_5_MoeForCausalLM"
    router_class = "Ernie4_5_MoeTopKRouter"

    def rope(self, index: int) -> Rope:
        """Return the RoPE of all layers."""
        return self.blocks.rope(self.model.model.rotary_emb, layout="pairs_of_halves", in_float32=True)

    def routing(self, module: Any) -> Routing:
        """Return the arithmetic of the router."""
        router = module.gate
        return Routing(
            len(router.weight),
            router.top_k,
            normalize=True,
            round_weights=True,
            correction=router.moe_statics.e_score_correction_bias.detach().flatten(),
            epsilon=router.norm_min,
            float_logits=True,
        )

    def shared_experts(self, module: Any) -> str | None:
        """Return the name of the shared experts, if the module has them."""
        return "shared_experts" if module.shared_experts is not None else None
