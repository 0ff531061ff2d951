"""The layouts of packed weights: their block sizes and how many bytes a weight takes. No torch."""

QUANT_METHOD = "llmctl"  # in the config.json of weights that lie in the layout of llmctl's kernels
GROUP = 16  # output rows that lie interleaved
BLOCK = 32  # inputs that share one scale


def native_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the bytes of a weight [outputs, inputs] in the layout of llmctl's kernels.

    Blocks of 32 inputs with a float16 scale each; outputs are rounded up to groups of 16.
    """
    return -(-outputs // GROUP) * -(-inputs // BLOCK) * (GROUP * BLOCK * bits // 8 + GROUP * 2)


def torch_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the bytes of a weight [outputs, inputs] in the layout of torch's packed kernels.

    8 bits have one scale per output, 4 bits a scale and a middle per block; outputs are rounded up to 16, inputs to 32.
    """
    rows, columns = -(-outputs // GROUP) * GROUP, -(-inputs // BLOCK) * BLOCK
    return rows * columns * bits // 8 + (2 * rows if bits == 8 else 4 * rows * columns // BLOCK)
