"""GPT-NeoX (Pythia): layer norms, biases, a RoPE of a part of each head, and attention and MLP side by side.

query_key_value has the query, the key and the value of a head side by side.
"""

from typing import Any

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import View


class GptNeoX(Llama):
    """Builds GPT-NeoX and Pythia."""

    transformers_class = "GPTNeoXForCausalLM"
    norm_flavour = "layer_norm"
    body_name = "gpt_neox"
    embed_tokens = "embed_in"
    final_norm = "final_layer_norm"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP of the same hidden states, or one after the other."""
        blocks = self.blocks
        expect_children(layer, "input_layernorm", "attention", "post_attention_layernorm", "mlp")
        attended = self.attention(layer.attention, blocks.rms_norm(layer.input_layernorm, hidden), index)
        if layer.use_parallel_residual:
            output = blocks.mlp(layer.mlp, blocks.rms_norm(layer.post_attention_layernorm, hidden))
            self.add(hidden, blocks.sum(output, attended))
        else:
            self.add(hidden, attended)
            self.add(hidden, blocks.mlp(layer.mlp, blocks.rms_norm(layer.post_attention_layernorm, hidden)))

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention."""
        return self.blocks.attention(module, x, scale=self.attention_scale(module.head_size), rope=self.rope(index))
