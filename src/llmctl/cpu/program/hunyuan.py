"""HunYuan: Llama with norms of queries and keys after RoPE. HunYuan-MoE has experts beside an MLP in every layer."""

from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import View


class HunYuanDense(Llama):
    """Builds HunYuan 0.5B to 7B."""

    transformers_class = "HunYuanDenseV1ForCausalLM"

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention."""
        scale, rope = self.attention_scale(module.head_dim), self.rope(index)
        return self.blocks.attention(module, x, scale=scale, rope=rope, norm_after_rope=True)


class HunYuanMoE(HunYuanDense):
    """Builds HunYuan-A13B."""

    transformers_class = "HunYuanMoEV1ForCausalLM"
    blocks: ExpertBlocks

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts plus that of the MLP which all tokens share."""
        import torch

        router = module.gate
        is_float = router.wg.weight.dtype == torch.float32
        routing = Routing(
            router.num_experts, router.top_k, normalize=True, round_weights=not is_float, float_logits=is_float
        )
        return self.blocks.moe(
            module, x, routing, router=router, router_class="HunYuanMoEV1Gate", shared_experts="shared_mlp"
        )
