"""SmolLM3: Llama without RoPE in some layers (`no_rope_layers`; by default every fourth). SmolLM2 is a Llama."""

from llmctl.cpu.program.llama import Llama, window_of_layer_type
from llmctl.cpu.program.writer import Rope


class SmolLM3(Llama):
    """Builds SmolLM3."""

    transformers_class = "SmolLM3ForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type, if `use_sliding_window` is set."""
        return window_of_layer_type(self.config, index) if self.config.use_sliding_window else 0

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE if the layer's entry in `no_rope_layers` is 1; despite the name, 1 means with RoPE."""
        return super().rope(index) if self.config.no_rope_layers[index] else None
