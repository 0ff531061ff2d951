"""Nemotron-H: each layer is a norm and one mixer: Mamba 2, attention without RoPE, an MLP or experts.

The MLP has a squared ReLU and no gate, and so do the experts. Their router is that of DeepSeek V3.
"""

from typing import Any

from llmctl.cpu.program.blocks import UnexpectedModuleError, expect_children
from llmctl.cpu.program.grouped_experts import Glm4Moe
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import View


class NemotronH(Glm4Moe):
    """Builds Nemotron-H, Nemotron Nano 2 and Nemotron 3."""

    transformers_class = "NemotronHForCausalLM"
    router_class = "NemotronHTopkRouter"
    norm_flavour = "weight_then_round"
    embed_tokens = "embeddings"
    final_norm = "norm_f"
    blocks: RecurrentBlocks

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add the output of the layer's mixer to the hidden states."""
        expect_children(layer, "norm", "mixer")
        normed = self.blocks.rms_norm(layer.norm, hidden)
        if layer.block_type == "linear_attention":
            output = self.blocks.mamba2(layer.mixer, normed)
        elif layer.block_type == "full_attention":
            output = self.attention(layer.mixer, normed, index)
        elif layer.block_type == "mlp":
            output = self.blocks.mlp(layer.mixer, normed)
        elif layer.block_type == "moe":
            routing = self.routing(layer.mixer)
            output = self.blocks.moe_of_ungated_experts(layer.mixer, normed, routing, router_class=self.router_class)
        else:
            raise UnexpectedModuleError(layer.block_type)
        self.add(hidden, output)

    def rope(self, index: int) -> None:
        """Return None: the model has no position embeddings."""
