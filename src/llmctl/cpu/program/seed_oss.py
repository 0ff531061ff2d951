"""Seed-OSS: Llama with biases, which the blocks read from the modules."""

from llmctl.cpu.program.llama import Llama


class SeedOss(Llama):
    """Builds Seed-OSS."""

    transformers_class = "SeedOssForCausalLM"
