"""SmolLM3: Llama without RoPE in every fourth layer, or in those of `no_rope_layers`. SmolLM2 is a Llama."""

from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import Rope


class SmolLM3(Llama):
    """Builds SmolLM3."""

    transformers_class = "SmolLM3ForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type where windows are in use."""
        return window_of_layer_type(self.config, index) if self.config.use_sliding_window else 0

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE where `no_rope_layers`, against its name, holds a 1."""
        return super().rope(index) if self.config.no_rope_layers[index] else None
