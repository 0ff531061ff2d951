"""Nemotron-H: each layer is a norm and one mixer: Mamba 2, attention without RoPE, or an MLP with a squared ReLU."""

from typing import Any

from llmctl.cpu.program.blocks import UnexpectedModuleError, expect_children
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import View


class NemotronH(Llama):
    """Builds Nemotron-H and Nemotron Nano 2, without experts."""

    transformers_class = "NemotronHForCausalLM"
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
            output = self.blocks.squared_relu_mlp(layer.mixer, normed)
        else:
            raise UnexpectedModuleError(layer.block_type)
        self.add(hidden, output)

    def rope(self, index: int) -> None:
        """Return None: the model has no position embeddings."""
