"""The layouts of packed weights: block sizes, and the size of a weight in bytes. Imports no torch."""

QUANT_METHOD = "llmctl"  # quant_method in the config.json of weights in the layout of llmctl's kernels
GROUP = 16  # interleaved output rows
BLOCK = 32  # inputs that share one scale


def padded_shape(outputs: int, inputs: int) -> tuple[int, int]:
    """Return the shape of a weight rounded up to whole groups of outputs and whole blocks of inputs."""
    return -(-outputs // GROUP) * GROUP, -(-inputs // BLOCK) * BLOCK


def native_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the size of a weight [outputs, inputs] in the layout of llmctl's kernels.

    Every output has a float16 scale for each block of inputs.
    """
    n, k = padded_shape(outputs, inputs)
    return n * k * bits // 8 + 2 * n * (k // BLOCK)


def torch_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the size of a weight [outputs, inputs] in the layout of torch's packed kernels.

    Scales are bfloat16: one per output with 8 bits, a scale and a zero point per block with 4 bits.
    """
    n, k = padded_shape(outputs, inputs)
    return n * k * bits // 8 + (2 * n if bits == 8 else 4 * n * (k // BLOCK))
