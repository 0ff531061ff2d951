"""Qwen 3.5: gated delta nets, and attention with an output gate in every fourth layer. Norms store w - 1.

Qwen 3.5-MoE and Qwen3-Next have a mixture of experts as MLP; Qwen3-Next has other projections in its delta nets.
"""

from typing import Any, ClassVar

from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.qwen import rounded_softmax
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.writer import View


class Qwen35(Llama):
    """Builds the text model of Qwen 3.5."""

    transformers_class = "Qwen3_5ForCausalLM"
    norm_flavour = "one_plus_weight"
    blocks: RecurrentBlocks

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add the delta net or attention, then the MLP, to the hidden states."""
        is_recurrent = self.config.layer_types[index] == "linear_attention"
        mixer = "linear_attn" if is_recurrent else "self_attn"
        expect_children(layer, "input_layernorm", mixer, "post_attention_layernorm", "mlp")
        normed = self.blocks.rms_norm(layer.input_layernorm, hidden)
        if is_recurrent:
            self.add(hidden, self.delta_net(layer.linear_attn, normed))
        else:
            self.add(hidden, self.attention(layer.self_attn, normed, index))
        self.add(hidden, self.mlp(layer.mlp, self.blocks.rms_norm(layer.post_attention_layernorm, hidden)))

    def delta_net(self, module: Any, x: View) -> View:
        """Return the output of a layer's gated delta net."""
        return self.blocks.gated_delta_net(module, x)

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's gated attention."""
        scale, rope = self.attention_scale(module.head_dim), self.rope(index)
        return self.blocks.attention(module, x, scale=scale, rope=rope, has_output_gate=True)


class Qwen35Moe(Qwen35):
    """Builds the text model of Qwen 3.5-MoE."""

    transformers_class = "Qwen3_5MoeForCausalLM"
    router_class: ClassVar[str] = "Qwen3_5MoeTopKRouter"

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, or of the gated MLP in a layer without experts."""
        if not hasattr(module, "experts"):
            return self.blocks.gated_mlp(module, x)
        routing = rounded_softmax(module.gate)
        return self.blocks.moe_with_gated_shared_expert(module, x, routing, router_class=self.router_class)


class Qwen3Next(Qwen35Moe):
    """Builds Qwen3-Next."""

    transformers_class = "Qwen3NextForCausalLM"
    router_class = "Qwen3NextTopKRouter"

    def delta_net(self, module: Any, x: View) -> View:
        """Return the output of a layer's gated delta net."""
        return self.blocks.grouped_delta_net(module, x)
