"""Phi-3 and Phi-4: Mistral with fused projections (qkv_proj, gate_up_proj), which the blocks split."""

from llmctl.cpu.program.mistral import Mistral


class Phi3(Mistral):
    """Builds Phi-3, Phi-3.5 and Phi-4."""

    transformers_class = "Phi3ForCausalLM"
