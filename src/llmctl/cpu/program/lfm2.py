"""LFM2: layers of a short convolution or of attention with q_layernorm and k_layernorm, and a gated MLP.

LFM2-MoE has a mixture of experts as MLP after its first layers.
"""

from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import View


class Lfm2(Llama):
    """Builds LFM2."""

    transformers_class = "Lfm2ForCausalLM"
    final_norm = "embedding_norm"
    blocks: RecurrentBlocks

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add the convolution or attention, then the MLP, to the hidden states."""
        mixer = "self_attn" if layer.is_attention_layer else "conv"
        expect_children(layer, "operator_norm", mixer, "ffn_norm", "feed_forward")
        normed = self.blocks.rms_norm(layer.operator_norm, hidden)
        if layer.is_attention_layer:
            self.add(hidden, self.attention(layer.self_attn, normed, index))
        else:
            self.add(hidden, self.blocks.short_conv(layer.conv, normed))
        self.add(hidden, self.mlp(layer.feed_forward, self.blocks.rms_norm(layer.ffn_norm, hidden)))


class Lfm2Moe(Lfm2):
    """Builds LFM2-MoE."""

    transformers_class = "Lfm2MoeForCausalLM"
    rotary_emb = "pos_emb"

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, or of the gated MLP in the first layers."""
        if not hasattr(module, "experts"):
            return self.blocks.gated_mlp(module, x)
        router = module.gate
        routing = Routing(
            len(router.weight),
            router.top_k,
            scoring="sigmoid",
            normalize=router.norm_topk_prob,
            round_weights=True,
            correction=module.expert_bias if router.use_expert_bias else None,
            multiplier=router.routed_scaling_factor,
            epsilon=1e-6,
        )
        return self.blocks.moe(module, x, routing, router=router, router_class="Lfm2MoeTopKRouter")
