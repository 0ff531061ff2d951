"""Mistral: Llama with one sliding window for all layers. Mixtral: Mistral with a mixture of experts (MoE) as MLP.

Ministral (8B of 2024) has windows in some layers. Ministral 3 multiplies queries at late positions by a factor.
"""

from typing import TYPE_CHECKING, Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import View

if TYPE_CHECKING:
    from torch import Tensor


class Mistral(Llama):
    """Builds Mistral."""

    transformers_class = "MistralForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the configuration."""
        return self.config.sliding_window or 0


class Ministral(Mistral):
    """Builds Ministral."""

    transformers_class = "MinistralForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)


class Ministral3(Mistral):
    """Builds Ministral 3 and the text model of Mistral Small 3.2 and later."""

    transformers_class = "Ministral3ForCausalLM"

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention."""
        if index == 0:
            self.token_factor = self.blocks.token_factor(self._query_factors)
        return self.blocks.attention(
            module,
            x,
            scale=self.attention_scale(module.head_dim),
            window=self.sliding_window(index),
            rope=self.rope(index),
            token_factor=self.token_factor,
        )

    def _query_factors(self, positions: "Tensor") -> "Tensor":
        """Return 1 + beta * log(1 + floor(position / original context)), rounded to the model's dtype."""
        import torch

        rope = self.config.rope_parameters
        steps = torch.floor(positions / rope["original_max_position_embeddings"])
        factors: Tensor = (1 + rope["llama_4_scaling_beta"] * torch.log(1 + steps)).to(self.model.dtype)
        return factors


class Mixtral(Mistral):
    """Builds Mixtral."""

    transformers_class = "MixtralForCausalLM"
    blocks: ExpertBlocks

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts; the router's weights stay float32."""
        router = module.gate
        routing = Routing(len(router.weight), router.top_k, normalize=True)
        return self.blocks.moe(module, x, routing, router=router, router_class="MixtralTopKRouter")
