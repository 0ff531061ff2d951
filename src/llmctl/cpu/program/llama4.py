"""Llama 4: attention in chunks with RoPE and L2 norms, or over all tokens without RoPE, and a mixture of experts.

The weights of a token's experts multiply the inputs of experts, not their outputs. Layers without experts have a gated
MLP. Layers without RoPE multiply queries at late positions by a factor.
"""

from typing import TYPE_CHECKING, Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import Rope, View

if TYPE_CHECKING:
    from torch import Tensor


class Llama4(Llama):
    """Builds the text model of Llama 4."""

    transformers_class = "Llama4ForCausalLM"
    mlp_name = "feed_forward"
    blocks: ExpertBlocks

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention."""
        is_chunked = self.config.layer_types[index] == "chunked_attention"
        return self.blocks.attention(
            module,
            x,
            scale=self.attention_scale(module.head_dim),
            chunk=self.config.attention_chunk_size if is_chunked else 0,
            rope=self.rope(index),
            norm_after_rope=True,
            token_factor=None if module.use_rope or not module.attn_temperature_tuning else self.temperature(),
        )

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE if the layer's entry in `no_rope_layers` is 1; despite the name, 1 means with RoPE."""
        if not self.config.no_rope_layers[index]:
            return None
        return self.blocks.rope(self.body.rotary_emb, layout="pairs_of_halves", in_float32=True)

    def temperature(self) -> int:
        """Return the number of the factors of queries in layers without RoPE."""
        if not self.blocks.token_factors:
            self.blocks.token_factor(self._query_factors)
        return 0

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, or of the gated MLP in a layer without experts."""
        if not hasattr(module, "experts"):
            return self.blocks.gated_mlp(module, x)
        router = module.router
        routing = Routing(len(router.weight), router.top_k, scoring="top_sigmoid", round_weights=True)
        return self.blocks.moe_with_weighed_inputs(module, x, routing, router_class="Llama4Router")

    def _query_factors(self, positions: "Tensor") -> "Tensor":
        """Return 1 + attn_scale * log(1 + floor((position + 1) / floor_scale))."""
        import torch

        steps = torch.floor((positions.float() + 1.0) / self.config.floor_scale)
        factors: Tensor = torch.log1p(steps) * self.config.attn_scale + 1.0
        return factors
