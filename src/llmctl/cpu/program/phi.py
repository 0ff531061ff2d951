"""Phi-3 and Phi-4: Mistral with fused projections (qkv_proj, gate_up_proj), which the blocks split.

Phi-1, 1.5 and 2 have layer norms, biases, a RoPE of a part of each head, and attention and MLP side by side.

Phi-3.5-MoE has layer norms with biases and a mixture of experts with a router of its own.
"""

from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.mistral import Mistral
from llmctl.cpu.program.writer import View


class Phi(Llama):
    """Builds Phi-1, Phi-1.5 and Phi-2."""

    transformers_class = "PhiForCausalLM"
    norm_flavour = "layer_norm"
    final_norm = "final_layernorm"

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP of the same normalised hidden states."""
        expect_children(layer, "input_layernorm", "self_attn", "mlp")
        normed = self.blocks.rms_norm(layer.input_layernorm, hidden)
        attended = self.attention(layer.self_attn, normed, index)
        self.add(hidden, self.blocks.sum(attended, self.blocks.mlp(layer.mlp, normed)))


class Phi3(Mistral):
    """Builds Phi-3, Phi-3.5 and Phi-4."""

    transformers_class = "Phi3ForCausalLM"


class Phimoe(Mistral):
    """Builds Phi-3.5-MoE."""

    transformers_class = "PhimoeForCausalLM"
    norm_flavour = "layer_norm"
    blocks: ExpertBlocks

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the two experts that the sparse mixer chooses."""
        import torch

        router = module.router
        epsilon = float(torch.tensor(2 * router.router_jitter_noise, dtype=self.model.dtype))
        routing = Routing(len(router.weight), 2, scoring="sparse_mixer", round_weights=True, epsilon=epsilon)
        return self.blocks.moe(module, x, routing, router=router, router_class="PhimoeTopKRouter")
