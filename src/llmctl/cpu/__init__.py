"""Kernels for CPUs: linear layers in 4 and 8 bits, bfloat16 and float32, and attention over a paged cache, in C++.

They are compiled when llmctl is installed, for every instruction set that the compiler knows, and chosen by processor
when they are first used. Where there was no compiler, `load` returns None and `missing` says why.

    kernels = kernels.load()
    if kernels is not None:
        qweight, scales = kernels.quantize_q4(linear.weight)
        y = kernels.linear_q4(x, qweight, scales, *linear.weight.shape)

Every result is the same bit for bit whatever rows stand beside it in a batch and however many threads there are.
"""
