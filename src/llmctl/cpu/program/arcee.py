"""Arcee (AFM): Llama whose MLP is a squared ReLU without a gate."""

from typing import Any

from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import View


class Arcee(Llama):
    """Builds AFM."""

    transformers_class = "ArceeForCausalLM"

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of a layer's MLP."""
        return self.blocks.mlp(module, x)
