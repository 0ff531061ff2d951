"""Mistral: Llama with one sliding window for all layers. Mixtral: Mistral with a mixture of experts (MoE) as MLP."""

from typing import Any

from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import View


class Mistral(Llama):
    """Builds Mistral."""

    transformers_class = "MistralForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the configuration."""
        return self.config.sliding_window or 0


class Mixtral(Mistral):
    """Builds Mixtral."""

    transformers_class = "MixtralForCausalLM"

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts; the router's weights stay float32."""
        return self.blocks.moe(module, x, router_class="MixtralTopKRouter", normalize=True, round_weights=False)
