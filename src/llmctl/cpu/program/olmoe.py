"""OLMoE: Llama with a mixture of experts as MLP, and norms of all heads together."""

from typing import Any

from llmctl.cpu.program.blocks import UnexpectedModuleError
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.qwen import rounded_softmax
from llmctl.cpu.program.writer import View


class Olmoe(Llama):
    """Builds OLMoE."""

    transformers_class = "OlmoeForCausalLM"
    blocks: ExpertBlocks

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention. Raises UnexpectedModuleError if it clips projections."""
        if self.config.clip_qkv is not None:
            raise UnexpectedModuleError("clipped projections")
        return super().attention(module, x, index)

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts."""
        routing = rounded_softmax(module.gate)
        return self.blocks.moe(module, x, routing, router=module.gate, router_class="OlmoeTopKRouter")
