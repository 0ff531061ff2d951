"""Phi-3 and Phi-4: Mistral with fused projections (qkv_proj, gate_up_proj), which the blocks split.

Phi-3.5-MoE has layer norms with biases and a mixture of experts with a router of its own.
"""

from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.mistral import Mistral
from llmctl.cpu.program.writer import View


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
