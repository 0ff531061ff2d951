"""Apertus: Llama with norms of each head, and an MLP without a gate whose activation, xIELU, has learned numbers."""

from llmctl.cpu.program.arcee import Arcee


class Apertus(Arcee):
    """Builds Apertus."""

    transformers_class = "ApertusForCausalLM"
    norms = ("attention_layernorm", "feedforward_layernorm")
