"""Gemma: norms whose weights are stored as w - 1. embed_tokens multiplies by a constant.

Gemma 2 has four norms per layer, windows in layers of the type sliding_attention, soft caps of scores and logits, and
an attention scale from the configuration. Gemma 3 has q_norm, k_norm and a RoPE for each type of layer, but no caps.
"""

from typing import Any, ClassVar

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import Rope, View
from llmctl.cpu.structs import NormFlavour


class Gemma(Llama):
    """Builds Gemma."""

    transformers_class = "GemmaForCausalLM"
    norm_flavour: ClassVar[NormFlavour] = "one_plus_weight"


class Gemma2(Gemma):
    """Builds Gemma 2."""

    transformers_class = "Gemma2ForCausalLM"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP, each normalised before and after."""
        before_and_after_mlp = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        expect_children(layer, "input_layernorm", "self_attn", "post_attention_layernorm", "mlp", *before_and_after_mlp)
        self.add_attention_and_mlp(layer, hidden, index)

    def add_attention_and_mlp(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP with their four norms."""
        blocks = self.blocks
        attended = self.attention(layer.self_attn, blocks.rms_norm(layer.input_layernorm, hidden), index)
        self.add(hidden, blocks.rms_norm(layer.post_attention_layernorm, attended))
        self.add(hidden, blocks.rms_norm(layer.post_feedforward_layernorm, self.feed_forward(layer, hidden)))

    def feed_forward(self, layer: Any, hidden: View) -> View:
        """Return the output of the MLP."""
        return self.mlp(layer.mlp, self.blocks.rms_norm(layer.pre_feedforward_layernorm, hidden))

    def attention_scale(self, head_size: int) -> float:
        """Return the scale set by `query_pre_attn_scalar`."""
        return float(self.config.query_pre_attn_scalar**-0.5)

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits, with the configuration's soft cap if it has one."""
        self.blocks.output_head(norm, lm_head, hidden, softcap=self.config.final_logit_softcapping)


class Gemma3(Gemma2):
    """Builds the text model of Gemma 3."""

    transformers_class = "Gemma3ForCausalLM"

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE of the layer's type."""
        return self.blocks.rope(self.model.model.rotary_emb, self.config.layer_types[index])
