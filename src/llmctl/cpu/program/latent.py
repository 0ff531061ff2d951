"""Families with multi-head latent attention (MLA): MiniCPM 3, Youtu-LLM, DeepSeek V2 and V3, GLM-4.7 Flash.

DeepSeek V3 and GLM-4.7 Flash have the mixture of experts of GLM-4.5, which is DeepSeek's; that of DeepSeek V2 has a
softmax instead of sigmoids.
"""

from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.blocks import UnexpectedModuleError
from llmctl.cpu.program.grouped_experts import Glm4Moe
from llmctl.cpu.program.latent_blocks import LatentBlocks
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import Rope, View


class Youtu(Llama):
    """Builds Youtu-LLM: Llama with latent attention."""

    transformers_class = "YoutuForCausalLM"
    blocks: LatentBlocks

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention."""
        return self.blocks.latent_attention(module, x, scale=module.scaling, rope=self.rope(index))

    def rope(self, index: int) -> Rope:
        """Return the RoPE.

        With `rope_interleave`, the modules also move the pairs apart, in queries and keys alike, which does not change
        q·k.
        """
        is_interleaved = getattr(self.config, "rope_interleave", False)
        return self.blocks.rope(self.model.model.rotary_emb, layout="pairs_of_halves" if is_interleaved else "halves")


class MiniCPM3(Youtu):
    """Builds MiniCPM 3, which has multipliers for sublayer outputs and logits."""

    transformers_class = "MiniCPM3ForCausalLM"

    def add(self, hidden: View, sublayer_output: View) -> None:
        """Add a sublayer's output times a constant."""
        self.blocks.add(hidden, sublayer_output, multiplier=self.model.model.layers[0].residual_scale)

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits and divide them by `logits_scaling`."""
        self.blocks.output_head(norm, lm_head, hidden, multiplier=1 / self.config.logits_scaling)


class DeepseekV3(Youtu, Glm4Moe):
    """Builds DeepSeek V3, R1 and other models of this class, such as Kimi K2 and Moonlight."""

    transformers_class = "DeepseekV3ForCausalLM"
    router_class = "DeepseekV3TopkRouter"
    blocks: LatentBlocks


class DeepseekV2(DeepseekV3):
    """Builds DeepSeek V2 and V2-Lite."""

    transformers_class = "DeepseekV2ForCausalLM"
    router_class = "DeepseekV2TopkRouter"

    def rope(self, index: int) -> Rope:
        """Return the RoPE, which is computed in float32."""
        return self.blocks.rope(self.body.rotary_emb, layout="pairs_of_halves", in_float32=True)

    def routing(self, module: Any) -> Routing:
        """Return the arithmetic of the router: a softmax, perhaps with groups, whose scores are those of their best."""
        router = module.gate
        if router.topk_method not in ("greedy", "group_limited_greedy"):
            raise UnexpectedModuleError(f"a router of the type {router.topk_method}")
        has_groups = router.topk_method == "group_limited_greedy"
        return Routing(
            len(router.weight),
            router.top_k,
            groups=router.num_group if has_groups else 1,
            top_groups=router.topk_group if has_groups else 1,
            group_best=1,
            multiplier=router.routed_scaling_factor,
            float_logits=True,
        )


class Glm4MoeLite(DeepseekV3):
    """Builds GLM-4.7 Flash."""

    transformers_class = "Glm4MoeLiteForCausalLM"
    router_class = "Glm4MoeLiteTopkRouter"
