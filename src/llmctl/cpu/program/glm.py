"""GLM: Llama with a fused gate_up_proj and a RoPE of adjacent elements in a part of each head.

GLM-4 (0414) also has norms after attention and MLP.
"""

from typing import Any

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import Rope, View


class Glm(Llama):
    """Builds GLM-4 of 2024 and GLM-Edge."""

    transformers_class = "GlmForCausalLM"

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE."""
        return self.blocks.rope(self.model.model.rotary_emb, layout="pairs_of_halves")


class Glm4(Glm):
    """Builds GLM-4 and GLM-Z1 of 2025."""

    transformers_class = "Glm4ForCausalLM"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP, each normalised before and after."""
        blocks = self.blocks
        before = ("input_layernorm", "post_attention_layernorm")
        expect_children(layer, *before, "self_attn", "post_self_attn_layernorm", "mlp", "post_mlp_layernorm")
        attended = self.attention(layer.self_attn, blocks.rms_norm(layer.input_layernorm, hidden), index)
        self.add(hidden, blocks.rms_norm(layer.post_self_attn_layernorm, attended))
        output = self.mlp(layer.mlp, blocks.rms_norm(layer.post_attention_layernorm, hidden))
        self.add(hidden, blocks.rms_norm(layer.post_mlp_layernorm, output))
