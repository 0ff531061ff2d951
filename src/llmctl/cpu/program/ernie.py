"""ERNIE 4.5 without experts: Llama with a RoPE of adjacent elements, in float32. grouped_experts.py has the other."""

from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import Rope


class Ernie45(Llama):
    """Builds ERNIE 4.5 of 0.3B."""

    transformers_class = "Ernie4_5ForCausalLM"

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE."""
        return self.blocks.rope(self.body.rotary_emb, layout="pairs_of_halves", in_float32=True)
