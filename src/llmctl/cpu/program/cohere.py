"""Command R and R7B (Cohere): LayerNorms without bias, attention and MLP side by side, a RoPE of adjacent elements.

Cohere 2 has sliding windows in most layers, and RoPE only in these.
"""

from typing import Any

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import Rope, View


class Cohere(Llama):
    """Builds Command R."""

    transformers_class = "CohereForCausalLM"
    norm_flavour = "layer_norm"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP of the same normalised hidden states."""
        expect_children(layer, "input_layernorm", "self_attn", "mlp")
        normed = self.blocks.rms_norm(layer.input_layernorm, hidden)
        self.add(hidden, self.attention(layer.self_attn, normed, index))
        self.add(hidden, self.mlp(layer.mlp, normed))

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE, which is computed in float32."""
        return self.blocks.rope(self.model.model.rotary_emb, layout="pairs", in_float32=True)

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits times `logit_scale`."""
        self.blocks.output_head(norm, lm_head, hidden, multiplier=self.config.logit_scale)


class Cohere2(Cohere):
    """Builds Command R7B and Command A."""

    transformers_class = "Cohere2ForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE of a layer with a window."""
        return super().rope(index) if self.config.layer_types[index] == "sliding_attention" else None
