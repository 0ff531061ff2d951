"""gpt-oss: attention with sinks, in every second layer with a sliding window, and a mixture of experts with biases."""

from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import View


class GptOss(Llama):
    """Builds gpt-oss."""

    transformers_class = "GptOssForCausalLM"
    norm_flavour = "weight_then_round"
    blocks: ExpertBlocks

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, whose weights are the softmax over the chosen ones."""
        router = module.router
        routing = Routing(len(router.weight), router.top_k, scoring="top_softmax", round_weights=True)
        return self.blocks.moe(module, x, routing, router=router, router_class="GptOssTopKRouter")
