"""Gemma 3: four norms per layer, whose weights are stored as w - 1, and two RoPEs.

Layers of the type sliding_attention have a window and their own RoPE. embed_tokens multiplies by a constant, and the
configuration sets the attention scale.
"""

from typing import Any

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import Rope, View


class Gemma3(Llama):
    """Builds the text model of Gemma 3."""

    transformers_class = "Gemma3ForCausalLM"
    norm_flavour = "one_plus_weight"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP, each normalised before and after."""
        blocks = self.blocks
        before_and_after_mlp = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        expect_children(layer, "input_layernorm", "self_attn", "post_attention_layernorm", "mlp", *before_and_after_mlp)
        attended = self.attention(layer.self_attn, blocks.rms_norm(layer.input_layernorm, hidden), index)
        self.add(hidden, blocks.rms_norm(layer.post_attention_layernorm, attended))
        output = self.mlp(layer.mlp, blocks.rms_norm(layer.pre_feedforward_layernorm, hidden))
        self.add(hidden, blocks.rms_norm(layer.post_feedforward_layernorm, output))

    def attention_scale(self, head_size: int) -> float:
        """Return the scale set by `query_pre_attn_scalar`."""
        return float(self.config.query_pre_attn_scalar**-0.5)

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)

    def rope(self, index: int) -> Rope:
        """Return the RoPE of the layer's type."""
        return self.blocks.rope(self.model.model.rotary_emb, self.config.layer_types[index])

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits, with the configuration's soft cap if it has one."""
        self.blocks.output_head(norm, lm_head, hidden, softcap=self.config.final_logit_softcapping)
