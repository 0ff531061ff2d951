"""Helium: Llama with a RoPE of adjacent elements, and norms that round once."""

from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import Rope


class Helium(Llama):
    """Builds Helium."""

    transformers_class = "HeliumForCausalLM"
    norm_flavour = "weight_then_round"

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE."""
        return self.blocks.rope(self.body.rotary_emb, layout="pairs_of_halves")
