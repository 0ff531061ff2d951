"""LFM2: layers of a short convolution or of attention with q_layernorm and k_layernorm, and a gated MLP.

LFM2-MoE has a mixture of experts as MLP after its first layers. LFM3 has a RoPE and perhaps a window for each type of
layer, gates of heads, and norms after convolution, attention and MLP.
"""

from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import Rope, View


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


class Lfm3(Lfm2):
    """Builds LFM3."""

    transformers_class = "Lfm3ForCausalLM"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add the convolution or attention, then the MLP, to the hidden states."""
        mixer = "self_attn" if layer.is_attention_layer else "conv"
        norms = ("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm")
        expect_children(layer, mixer, "feed_forward", *norms)
        normed = self.blocks.rms_norm(layer.operator_norm, hidden)
        if layer.is_attention_layer:
            output = self.attention(layer.self_attn, normed, index)
        else:
            output = self.blocks.short_conv(layer.conv, normed)
        self.add(hidden, self.normed(layer.post_operator_norm, output))
        output = self.mlp(layer.feed_forward, self.blocks.rms_norm(layer.ffn_norm, hidden))
        self.add(hidden, self.normed(layer.post_ffn_norm, output))

    def normed(self, module: Any, x: View) -> View:
        """Return a sublayer's output, normalised if the model has such norms."""
        return x if type(module).__name__ == "Identity" else self.blocks.rms_norm(module, x)

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE of the layer's type, which is computed in float32."""
        return self.blocks.rope(self.body.rotary_emb, self.config.layer_types[index], in_float32=True)
