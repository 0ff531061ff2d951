"""The layouts of packed weights: block sizes, and the size of a weight in bytes. Imports no torch."""

from typing import Literal

# The values of 4-bit codes and the scales of blocks: llmctl's own with float16, or the numbers (E2M1) and the exponents
# (E8M0) of MXFP4 (OCP Microscaling Formats 1.0).
Encoding = Literal["llmctl", "mxfp4"]

QUANT_METHOD = "llmctl"  # quant_method in the config.json of weights in the layout of llmctl's kernels
MXFP4_QUANT_METHOD = "llmctl_mxfp4"  # of an MXFP4 checkpoint for llmctl's kernels, in transformers' registry
MXFP4_BLOCKS, MXFP4_SCALES = "_blocks", "_scales"  # ends of the names of its tensors
GROUP = 16  # interleaved output rows
BLOCK = 32  # inputs that share one scale


def padded_shape(outputs: int, inputs: int) -> tuple[int, int]:
    """Return the shape of a weight rounded up to whole groups of outputs and whole blocks of inputs."""
    return -(-outputs // GROUP) * GROUP, -(-inputs // BLOCK) * BLOCK


def native_bytes(outputs: int, inputs: int, bits: int, encoding: Encoding = "llmctl") -> int:
    """Return the size of a weight [outputs, inputs] in the layout of llmctl's kernels.

    Every output has a scale for each block of inputs: two bytes in float16, or one in MXFP4.
    """
    n, k = padded_shape(outputs, inputs)
    return n * k * bits // 8 + (1 if encoding == "mxfp4" else 2) * n * (k // BLOCK)


def torch_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the size of a weight [outputs, inputs] in the layout of torch's packed kernels.

    Scales are bfloat16: one per output with 8 bits, a scale and a zero point per block with 4 bits.
    """
    n, k = padded_shape(outputs, inputs)
    return n * k * bits // 8 + (2 * n if bits == 8 else 4 * n * (k // BLOCK))
