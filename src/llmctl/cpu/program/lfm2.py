"""LFM2: layers of a short convolution or of attention with q_layernorm and k_layernorm, and a gated MLP."""

from typing import Any

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
