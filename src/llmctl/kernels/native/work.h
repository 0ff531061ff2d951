// The functions of the instruction set in use, cut into pieces for threads. No checks: whoever calls has made them.
#pragma once

#include "kernels.h"
#include "threads.h"

namespace llmctl {

extern const Isa* isa;  // the one in use

inline Size bytes_of(int dtype) { return dtype == kF32 ? 4 : 2; }

// A weight that is quantised, and where its products go: y [rows][n].
struct Product {
    int bits;
    Size n;
    const void* weight;
    const void* scales;
    const void* bias;
    int bias_dtype;
    void* y;
    int y_dtype;
};

// x [rows][k] times each of several quantised weights [n][k], of any number. x is quantised once, the threads part all products at once.
void products(const void* x, int x_dtype, Size rows, Size k, const Product* wanted, int count, int threads);

// A weight as torch stores it, likewise.
struct DenseProduct {
    Size n;
    const void* weight;
    const void* bias;
    int bias_dtype;
    void* y;
    int y_dtype;
};

// x [rows][k] times each of several weights [n][k] of one type; the threads part all products at once.
void dense_products(const void* x, int x_dtype, Size rows, Size k, int w_dtype, const DenseProduct* wanted, int count,
                    int threads);

constexpr int kMostProducts = 8;  // at once

void attend(const Attention& job, int threads);

// `function(row, work)` for every row of an operation.
template <class Function>
void each_row(const Op& op, Size rows, int threads, const Function& function) {
    const Size pieces = ceil_div(rows, 4 * threads);
    parallel_for(rows, pieces < 4 ? 4 : pieces, threads, [&](Size begin, Size end) {
        float* work = static_cast<float*>(scratch(kWork, row_scratch(op)));
        for (Size row = begin; row < end; ++row) function(row, work);
    });
}

}  // namespace llmctl
