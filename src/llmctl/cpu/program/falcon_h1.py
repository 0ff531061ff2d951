"""Falcon-H1: Mamba 2 and attention side by side in every layer, a gated MLP, and multipliers for many outputs."""

from typing import Any

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import View


class FalconH1(Llama):
    """Builds Falcon-H1."""

    transformers_class = "FalconH1ForCausalLM"
    final_norm = "final_layernorm"
    blocks: RecurrentBlocks

    def embedding(self, embed_tokens: Any) -> View:
        """Return the embeddings times their multiplier."""
        return self.blocks.embedding(embed_tokens, multiplier=self.config.embedding_multiplier)

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add Mamba 2 plus attention, then the MLP, to the hidden states."""
        blocks = self.blocks
        expect_children(layer, "input_layernorm", "mamba", "self_attn", "pre_ff_layernorm", "feed_forward")
        normed = blocks.rms_norm(layer.input_layernorm, hidden)
        inputs = blocks.scaled(normed, layer.mamba.ssm_in_multiplier)
        recurrent = blocks.mamba2(layer.mamba, inputs, multipliers=_multipliers(layer.mamba))
        blocks.scale(recurrent, layer.ssm_out_multiplier)
        attended = self.attention(layer.self_attn, blocks.scaled(normed, layer.attention_in_multiplier), index)
        self.add(hidden, blocks.sum(recurrent, attended, multiplier=layer.attn_out_multiplier))
        self.add(hidden, self.mlp(layer.feed_forward, blocks.rms_norm(layer.pre_ff_layernorm, hidden)))

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of a layer's MLP."""
        gate, down = module.gate_multiplier, module.down_multiplier
        return self.blocks.gated_mlp(module, x, gate_multiplier=gate, down_multiplier=down)

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits times their multiplier."""
        self.blocks.output_head(norm, lm_head, hidden, multiplier=self.config.lm_head_multiplier)


def _multipliers(module: Any) -> list[tuple[int, float]]:
    """Return the sizes of gate, x, B, C and steps in in_proj's output, and the multiplier of each."""
    groups = module.groups_time_state_size
    sizes = (module.intermediate_size, module.intermediate_size, groups, groups, module.num_heads)
    vector, parts, offset = module.mup_vector.flatten(), [], 0
    for size in sizes:
        parts.append((size, float(vector[offset])))
        offset += size
    return parts
