// y = x @ w^T with w as torch stores it: dot products along the inputs, tiles of x rows times four w rows. The inputs are
// cut at multiples of a fixed depth, each part is summed over the lanes of one vector, the lanes in a fixed order, and the
// parts one after the other: a result depends neither on the other rows of x nor on threads.
#pragma once

#include "kernels.h"

namespace {

using llmctl::kDenseDepth;
using llmctl::kDenseRows;
using llmctl::kDenseTokens;

struct WeightF32 {
    using W = float;
    static Simd::F load(const float* p) { return Simd::load(p); }
};
struct WeightBF16 {
    using W = uint16_t;
    static Simd::F load(const uint16_t* p) { return Simd::load(p); }
};
struct WeightF16 {
    using W = uint16_t;
    static Simd::F load(const uint16_t* p) { return Simd::load_f16(p); }
};

// How x and w meet: in float32, or, where there is an instruction for it, in pairs of bfloat16.
template <class Weight>
struct InF32 {
    using X = float;
    using W = typename Weight::W;
    using V = Simd::F;
    static constexpr Size kStep = Simd::kLanes;
    static constexpr Size kDepth = kDenseDepth;
    static V load_x(const X* p) { return Simd::load(p); }
    static V load_w(const W* p) { return Weight::load(p); }
    static Simd::F dot(Simd::F sum, V x, V w) { return Simd::fma(x, w, sum); }
};
#ifdef LLMCTL_BF16_DOT
struct InPairs {
    using X = uint16_t;
    using W = uint16_t;
    using V = Simd::P;
    static constexpr Size kStep = Simd::kPairLanes;
    static constexpr Size kDepth = 2 * kDenseDepth;
    static V load_x(const X* p) { return Simd::load_pairs(p); }
    static V load_w(const W* p) { return Simd::load_pairs(p); }
    static Simd::F dot(Simd::F sum, V x, V w) { return Simd::dot(sum, x, w); }
};
#endif

constexpr int kTileRows = Simd::kLanes == 16 ? 4 : 2;  // by how many registers there are

template <class Kind, int Rows, int Columns>
inline void dense_tile(const typename Kind::X* x, Size x_stride, const typename Kind::W* w, Size w_stride, Size depth,
                       float* to, Size to_stride, bool is_first) {
    Simd::F sums[Rows][Columns];
    for (int t = 0; t < Rows; ++t)
        for (int n = 0; n < Columns; ++n) sums[t][n] = Simd::zero();
    Size k = 0;
    for (; k + Kind::kStep <= depth; k += Kind::kStep) {
        typename Kind::V columns[Columns];
        for (int n = 0; n < Columns; ++n) columns[n] = Kind::load_w(w + n * w_stride + k);
        for (int t = 0; t < Rows; ++t) {
            const auto row = Kind::load_x(x + t * x_stride + k);
            for (int n = 0; n < Columns; ++n) sums[t][n] = Kind::dot(sums[t][n], row, columns[n]);
        }
    }
    if (k < depth) {
        typename Kind::V columns[Columns];
        for (int n = 0; n < Columns; ++n) {
            typename Kind::W rest[Kind::kStep] = {};
            std::memcpy(rest, w + n * w_stride + k, static_cast<size_t>(depth - k) * sizeof rest[0]);
            columns[n] = Kind::load_w(rest);
        }
        for (int t = 0; t < Rows; ++t) {
            const auto row = Kind::load_x(x + t * x_stride + k);
            for (int n = 0; n < Columns; ++n) sums[t][n] = Kind::dot(sums[t][n], row, columns[n]);
        }
    }
    for (int t = 0; t < Rows; ++t) {
        float totals[4];
        if constexpr (Columns == 4) {
            Simd::totals(sums[t][0], sums[t][1], sums[t][2], sums[t][3], totals);
        } else {
            totals[0] = Simd::total(sums[t][0]);
        }
        for (int n = 0; n < Columns; ++n) {
            float* place = to + t * to_stride + n;
            *place = is_first ? totals[n] : *place + totals[n];
        }
    }
}

template <class Kind, int Columns>
inline void dense_rows(const typename Kind::X* x, Size x_stride, Size rows, const typename Kind::W* w, Size w_stride,
                       Size depth, float* to, bool is_first) {
    Size t = 0;
    for (; t + kTileRows <= rows; t += kTileRows) {
        dense_tile<Kind, kTileRows, Columns>(x + t * x_stride, x_stride, w, w_stride, depth, to + t * kDenseRows,
                                             kDenseRows, is_first);
    }
    for (; t < rows; ++t) {
        dense_tile<Kind, 1, Columns>(x + t * x_stride, x_stride, w, w_stride, depth, to + t * kDenseRows, kDenseRows,
                                     is_first);
    }
}

// Four rows of w against many rows of x: numbers of 16 bits are widened once.
template <class Weight>
inline void widened_rows(const float* x, Size x_stride, Size rows, const typename Weight::W* w, Size w_stride, Size depth,
                         float* to, bool is_first, float* panel) {
    for (int n = 0; n < 4; ++n) {
        Size k = 0;
        for (; k + Simd::kLanes <= depth; k += Simd::kLanes) {
            Simd::store(panel + n * kDenseDepth + k, Weight::load(w + n * w_stride + k));
        }
        if (k < depth) {
            typename Weight::W rest[Simd::kLanes] = {};
            std::memcpy(rest, w + n * w_stride + k, static_cast<size_t>(depth - k) * sizeof rest[0]);
            Simd::store(panel + n * kDenseDepth + k, Weight::load(rest));
        }
    }
    const Size whole = llmctl::ceil_div(depth, Simd::kLanes) * Simd::kLanes;
    dense_rows<InF32<WeightF32>, 4>(x, x_stride, rows, panel, kDenseDepth, whole, to, is_first);
}

template <class Kind, class Weight>
inline void dense_columns(const llmctl::DenseLinear& job, Size n_begin, Size n_end, float* scratch) {
    float* results = scratch;
    float* panel = scratch + kDenseRows * kDenseTokens;
    const auto* x = static_cast<const typename Kind::X*>(job.x);
    const auto* w = static_cast<const typename Kind::W*>(job.w);
    for (Size first = 0; first < job.rows; first += kDenseTokens) {
        const Size rows = job.rows - first < kDenseTokens ? job.rows - first : kDenseTokens;
        for (Size begin = n_begin; begin < n_end; begin += kDenseRows) {
            const Size count = n_end - begin < kDenseRows ? n_end - begin : kDenseRows;
            for (Size k = 0; k < job.k; k += Kind::kDepth) {
                const Size depth = job.k - k < Kind::kDepth ? job.k - k : Kind::kDepth;
                const auto* x_part = x + first * job.x_stride + k;
                Size n = 0;
                for (; n + 4 <= count; n += 4) {
                    const auto* w_part = w + (begin + n) * job.k + k;
                    if constexpr (sizeof(typename Kind::X) == 4 && sizeof(typename Kind::W) == 2) {
                        if (rows > 2 * kTileRows) {
                            widened_rows<Weight>(x_part, job.x_stride, rows, w_part, job.k, depth, results + n, k == 0,
                                                 panel);
                            continue;
                        }
                    }
                    dense_rows<Kind, 4>(x_part, job.x_stride, rows, w_part, job.k, depth, results + n, k == 0);
                }
                for (; n < count; ++n) {
                    const auto* w_part = w + (begin + n) * job.k + k;
                    dense_rows<Kind, 1>(x_part, job.x_stride, rows, w_part, job.k, depth, results + n, k == 0);
                }
            }
            for (Size t = 0; t < rows; ++t) {
                for (Size n = 0; n < count; n += 16) {
                    store_results(results + t * kDenseRows + n, job.bias ? job.bias + begin + n : nullptr,
                                  advanced(job.y, job.y_dtype, (first + t) * job.n + begin + n), job.y_dtype,
                                  count - n < 16 ? count - n : 16);
                }
            }
        }
    }
}

inline void linear_dense(const llmctl::DenseLinear& job, Size n_begin, Size n_end, float* scratch) {
    if (job.w_dtype == llmctl::kF32) {
        dense_columns<InF32<WeightF32>, WeightF32>(job, n_begin, n_end, scratch);
    } else if (job.w_dtype == llmctl::kF16) {
        dense_columns<InF32<WeightF16>, WeightF16>(job, n_begin, n_end, scratch);
#ifdef LLMCTL_BF16_DOT
    } else if (job.x_dtype == llmctl::kBF16) {
        dense_columns<InPairs, WeightBF16>(job, n_begin, n_end, scratch);
#endif
    } else {
        dense_columns<InF32<WeightBF16>, WeightBF16>(job, n_begin, n_end, scratch);
    }
}

}  // namespace
