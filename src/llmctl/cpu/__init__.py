"""Kernels for CPUs in C++: linear layers in 4 and 8 bits, bfloat16 and float32, and attention over a paged KV cache.

They are compiled when llmctl is installed, for every instruction set that the compiler knows; the first use chooses one
for the processor. Where there was no compiler, `load` returns None and `missing` gives the reason.

    kernels = kernels.load()
    if kernels is not None:
        qweight, scales = kernels.quantize_q4(linear.weight)
        y = kernels.linear_q4(x, qweight, scales, *linear.weight.shape)

Every result has the same bits whatever the rest of the batch is and however many threads there are.
"""
