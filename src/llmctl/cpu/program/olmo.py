"""OLMo 2 and 3: norms after attention and MLP instead of before, q_norm and k_norm over all heads together.

OLMo 3 has sliding windows in most layers, and a RoPE for each type of layer.
"""

from typing import Any, ClassVar

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import Rope, View
from llmctl.cpu.structs import NormFlavour


class Olmo2(Llama):
    """Builds OLMo 2."""

    transformers_class = "Olmo2ForCausalLM"
    norm_flavour: ClassVar[NormFlavour] = "weight_then_round"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP, each normalised afterwards."""
        blocks = self.blocks
        expect_children(layer, "self_attn", "post_attention_layernorm", "mlp", "post_feedforward_layernorm")
        attended = self.attention(layer.self_attn, hidden, index)
        self.add(hidden, blocks.rms_norm(layer.post_attention_layernorm, attended))
        self.add(hidden, blocks.rms_norm(layer.post_feedforward_layernorm, self.mlp(layer.mlp, hidden)))

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE, which is computed in float32."""
        return self.blocks.rope(self.model.model.rotary_emb, in_float32=True)


class Olmo3(Olmo2):
    """Builds OLMo 3."""

    transformers_class = "Olmo3ForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE of the layer's type."""
        return self.blocks.rope(self.model.model.rotary_emb, self.config.layer_types[index], in_float32=True)
