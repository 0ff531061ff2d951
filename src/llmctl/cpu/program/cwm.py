"""CWM: Llama with sliding windows in most layers."""

from llmctl.cpu.program.llama import Llama, window_of_layer_type


class Cwm(Llama):
    """Builds CWM."""

    transformers_class = "CwmForCausalLM"

    def sliding_window(self, index: int) -> int:
        """Return the window of the layer's type."""
        return window_of_layer_type(self.config, index)
