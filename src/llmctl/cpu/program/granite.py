"""Granite: Llama with multipliers for embeddings, attention scores, sublayer outputs and logits."""

from typing import Any

from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import View


class Granite(Llama):
    """Builds Granite 3."""

    transformers_class = "GraniteForCausalLM"

    def embedding(self, embed_tokens: Any) -> View:
        """Return the embeddings times their multiplier."""
        return self.blocks.embedding(embed_tokens, multiplier=self.config.embedding_multiplier)

    def attention_scale(self, head_size: int) -> float:
        """Return the multiplier of attention scores."""
        return float(self.config.attention_multiplier)

    def add(self, hidden: View, sublayer_output: View) -> None:
        """Add a sublayer's output times `residual_multiplier`."""
        self.blocks.add(hidden, sublayer_output, multiplier=self.config.residual_multiplier)

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits and divide them by `logits_scaling`."""
        self.blocks.output_head(norm, lm_head, hidden, multiplier=1 / self.config.logits_scaling)
