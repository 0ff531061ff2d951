"""CPU kernels in C++: linear layers in 4 and 8 bits, bfloat16 and float32, and attention over a paged KV cache.

They are compiled when llmctl is installed, for every instruction set that the compiler supports; the best one for the
processor is chosen at the first use. Without a compiler, `load` returns None and `missing` gives the reason.

    kernels = kernels.load()
    if kernels is not None:
        qweight, scales = kernels.quantize_q4(linear.weight)
        y = kernels.linear_q4(x, qweight, scales, *linear.weight.shape)

Results are bitwise independent of the rest of the batch and of the number of threads.
"""
