"""StarCoder2: layer norms, biases, an MLP without a gate, and one sliding window for all layers."""

from typing import Any

from llmctl.cpu.program.mistral import Mistral
from llmctl.cpu.program.writer import View


class Starcoder2(Mistral):
    """Builds StarCoder2."""

    transformers_class = "Starcoder2ForCausalLM"
    norm_flavour = "layer_norm"

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of a layer's MLP."""
        return self.blocks.mlp(module, x)
