"""The layouts of packed weights: their block sizes, and the bytes that a weight takes. Imports no torch."""

QUANT_METHOD = "llmctl"  # in the config.json of weights that lie in the layout of llmctl's kernels
GROUP = 16  # output rows that lie interleaved
BLOCK = 32  # inputs that share one scale


def padded_shape(outputs: int, inputs: int) -> tuple[int, int]:
    """Return the shape of a weight rounded up to whole groups of outputs and whole blocks of inputs."""
    return -(-outputs // GROUP) * GROUP, -(-inputs // BLOCK) * BLOCK


def native_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the bytes of a weight [outputs, inputs] in the layout of llmctl's kernels.

    Every output has a float16 scale for each block of inputs.
    """
    n, k = padded_shape(outputs, inputs)
    return n * k * bits // 8 + 2 * n * (k // BLOCK)


def torch_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the bytes of a weight [outputs, inputs] in the layout of torch's packed kernels.

    Scales are bfloat16: with 8 bits one for each output, with 4 bits a scale and a middle for each block.
    """
    n, k = padded_shape(outputs, inputs)
    return n * k * bits // 8 + (2 * n if bits == 8 else 4 * n * (k // BLOCK))
