"""StableLM: Llama with layer norms and a RoPE of a part of each head; some have attention and MLP side by side."""

from typing import Any

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import View


class StableLm(Llama):
    """Builds StableLM 3B, StableLM 2 and Zephyr, without norms of heads."""

    transformers_class = "StableLmForCausalLM"
    norm_flavour = "layer_norm"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP, one after the other or of the same normalised hidden states."""
        if not layer.use_parallel_residual:
            super().decoder_layer(layer, hidden, index)
            return
        expect_children(layer, "input_layernorm", "self_attn", "mlp")
        normed = self.blocks.rms_norm(layer.input_layernorm, hidden)
        self.add(hidden, self.attention(layer.self_attn, normed, index))
        self.add(hidden, self.mlp(layer.mlp, normed))
