"""Granite 4 Hybrid: Granite with Mamba 2 in most layers, attention without RoPE in the others, and a fused MLP."""

from typing import Any

from llmctl.cpu.program.blocks import UnexpectedModuleError, expect_children
from llmctl.cpu.program.granite import Granite
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import Rope, View


class GraniteHybrid(Granite):
    """Builds Granite 4 Hybrid without experts."""

    transformers_class = "GraniteMoeHybridForCausalLM"
    blocks: RecurrentBlocks

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add Mamba 2 or attention, then the MLP, to the hidden states."""
        if layer.has_experts:
            raise UnexpectedModuleError("experts")
        mixer = "self_attn" if layer.mamba is None else "mamba"
        expect_children(layer, "input_layernorm", mixer, "post_attention_layernorm", "shared_mlp")
        normed = self.blocks.rms_norm(layer.input_layernorm, hidden)
        if layer.mamba is None:
            self.add(hidden, self.attention(layer.self_attn, normed, index))
        else:
            self.add(hidden, self.blocks.mamba2(layer.mamba, normed))
        normed = self.blocks.rms_norm(layer.post_attention_layernorm, hidden)
        self.add(hidden, self.mlp(layer.shared_mlp, normed))

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE, or None for a model without position embeddings."""
        return None if self.model.model.rotary_emb is None else super().rope(index)
