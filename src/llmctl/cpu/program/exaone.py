"""EXAONE 4: norms after attention and MLP as in OLMo 2, sliding windows in most layers, and RoPE only in these."""

from llmctl.cpu.program.llama import window_of_layer_type
from llmctl.cpu.program.olmo import Olmo2
from llmctl.cpu.program.writer import Rope


class Exaone4(Olmo2):
    """Builds EXAONE 4."""

    transformers_class = "Exaone4ForCausalLM"
    norm_flavour = "norm_then_weight"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE of a layer with a window, or of every layer if the model has no windows."""
        has_rope = self.config.sliding_window is None or self.config.layer_types[index] == "sliding_attention"
        return self.blocks.rope(self.body.rotary_emb) if has_rope else None
