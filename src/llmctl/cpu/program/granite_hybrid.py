"""Granite 4 Hybrid: Granite with Mamba 2 in most layers, attention without RoPE in the others, and a fused MLP.

Models with experts add the output of the MLP to theirs.
"""

from typing import Any

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.granite import GraniteMoeShared
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import Rope, View


class GraniteHybrid(GraniteMoeShared):
    """Builds Granite 4 Hybrid."""

    transformers_class = "GraniteMoeHybridForCausalLM"
    router_class = "GraniteMoeHybridTopKRouter"
    blocks: RecurrentBlocks

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add Mamba 2 or attention, then the MLP and the experts, to the hidden states."""
        experts = ["block_sparse_moe"] if layer.has_experts else []
        mixer = "self_attn" if layer.mamba is None else "mamba"
        expect_children(layer, "input_layernorm", mixer, "post_attention_layernorm", "shared_mlp", *experts)
        normed = self.blocks.rms_norm(layer.input_layernorm, hidden)
        if layer.mamba is None:
            self.add(hidden, self.attention(layer.self_attn, normed, index))
        else:
            self.add(hidden, self.blocks.mamba2(layer.mamba, normed))
        normed = self.blocks.rms_norm(layer.post_attention_layernorm, hidden)
        output = self.mlp(layer.shared_mlp, normed)
        self.add(hidden, self.experts(layer.block_sparse_moe, normed, output) if experts else output)

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE, or None for a model without position embeddings."""
        return None if self.model.model.rotary_emb is None else super().rope(index)
