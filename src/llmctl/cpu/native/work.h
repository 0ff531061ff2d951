// The functions of the instruction set in use, split into pieces for threads. Arguments are checked by Python, not here.
#pragma once

#include "kernels.h"
#include "threads.h"

namespace llmctl {

extern const Isa* isa;  // the one in use

inline Size bytes_of(int dtype) { return dtype == kF32 ? 4 : 2; }

// A weight [n][k] and its output y [rows][n]. With bits 0 the weight is as torch stores it, and there are no scales.
struct Product {
    int bits, encoding;
    Size n;
    const void* weight;
    const void* scales;
    const void* bias;
    int bias_dtype;
    void* y;
    int y_dtype;
};

// A product whose input x [rows][k] is its own.
struct InputProduct {
    const void* x;
    Size rows;
    Product product;
};

// x [rows][k] times each of `count` quantised weights. x is quantised once.
void quantized_products(const void* x, int x_dtype, Size rows, Size k, const Product* wanted, int count, int threads);

// x [rows][k] times each of `count` weights of one type.
void dense_products(const void* x, int x_dtype, Size rows, Size k, int w_dtype, const Product* wanted, int count,
                    int threads);

// Products of different inputs with different weights of one type: as torch stores them (`w_dtype`), or all quantised.
void separate_products(const InputProduct* wanted, int count, int x_dtype, Size k, int w_dtype, int threads);

void attend(const Attention& job, int threads);

// Call `function(row, work)` for every row of an operation.
template <class Function>
void each_row(const Operation& op, Size rows, int threads, const Function& function) {
    const Size pieces = ceil_div(rows, 4 * threads);
    parallel_for(rows, pieces < 4 ? 4 : pieces, threads, [&](Size begin, Size end) {
        float* work = static_cast<float*>(scratch(kWork, row_scratch(op)));
        for (Size row = begin; row < end; ++row) function(row, work);
    });
}

}  // namespace llmctl
