// y = x @ w^T with w as torch stores it. A vector holds a few inputs of each of kLanes / 4 rows of w, to be multiplied by the
// same inputs of a row of x. So a result is the sum of four lanes, added in the same order for any number of rows. For many
// rows of x, w is first copied to a panel in this order; for few it is read in its own.
//
// The inputs are cut at multiples of a fixed depth, and the sums of the parts are added one after the other: a result depends
// neither on the other rows of x nor on threads.
#pragma once

#include "kernels.h"

namespace {

using llmctl::kDenseRows;
using llmctl::kDenseTokens;

constexpr int kVectorRows = Simd::kLanes / 4;            // rows of w in a vector
constexpr int kPanelRows = Simd::kLanes;                 // rows of w in a panel: four vectors
constexpr int kTileRows = Simd::kLanes == 8 ? 3 : 6;     // rows of x in a tile, limited by the number of registers
constexpr Size kFewRows = Simd::kLanes == 16 ? 4 : 2;    // rows of x that are multiplied as fast as w is read
constexpr Size kStreamedRows = 8;                        // rows of w that are read together then

// Products in float32: a vector holds four inputs of each row.
template <class Stored>
struct InFloats {
    using X = float;
    using W = Stored;
    using Packed = float;
    using V = Simd::F;
    static constexpr Size kInputs = 4, kDepth = llmctl::kDenseScratch / (kPanelRows * 4);
    static V load(const float* p) { return Simd::load(p); }
    static void store(float* p, V v) { Simd::store(p, v); }
    static V four_times(const float* p) { return Simd::repeated(p); }
    static V dot(V sum, V x, V w) { return Simd::fma(x, w, sum); }
    static void regroup(V (&rows)[kVectorRows]) { Simd::regroup(rows); }
};
struct WeightF32 : InFloats<float> {
    static V load_w(const float* p) { return Simd::load(p); }
};
struct WeightBF16 : InFloats<uint16_t> {
    static V load_w(const uint16_t* p) { return Simd::load(p); }
};
struct WeightF16 : InFloats<uint16_t> {
    static V load_w(const uint16_t* p) { return Simd::load_f16(p); }
};

#ifdef LLMCTL_BF16_DOT
// Products of pairs of bfloat16, by the processor's instruction for them: a vector holds eight inputs of each row.
struct InPairs {
    using X = uint16_t;
    using W = uint16_t;
    using Packed = uint16_t;
    using V = Simd::P;
    static constexpr Size kInputs = 8, kDepth = llmctl::kDenseScratch / (kPanelRows * 2);
    static V load(const uint16_t* p) { return Simd::load_pairs(p); }
    static V load_w(const uint16_t* p) { return Simd::load_pairs(p); }
    static void store(uint16_t* p, V v) { Simd::store_pairs(p, v); }
    static V four_times(const uint16_t* p) { return Simd::four_times(p); }
    static Simd::F dot(Simd::F sum, V x, V w) { return Simd::dot(sum, x, w); }
    static void regroup(V (&rows)[kVectorRows]) { Simd::regroup(rows); }
};
#endif

template <class Kind>
constexpr Size kStep = Kind::kInputs * kVectorRows;  // inputs that are reordered together

// kStep inputs of each of kVectorRows rows of w, `apart` elements from each other; those after `rows` and after `depth` are
// zero. to[j] has the inputs from j * kInputs on of every row.
template <class Kind>
inline void load_vectors(const typename Kind::W* w, Size apart, Size rows, Size depth, typename Kind::V (&to)[kVectorRows]) {
    if (rows >= kVectorRows && depth >= kStep<Kind>) {
        for (int i = 0; i < kVectorRows; ++i) to[i] = Kind::load_w(w + i * apart);
    } else {
        for (int i = 0; i < kVectorRows; ++i) {
            typename Kind::W rest[kStep<Kind>] = {};
            const Size count = depth < kStep<Kind> ? depth : kStep<Kind>;
            if (i < rows) std::memcpy(rest, w + i * apart, static_cast<size_t>(count) * sizeof rest[0]);
            to[i] = Kind::load_w(rest);
        }
    }
    Kind::regroup(to);
}

// Up to kPanelRows rows of w: [input / kInputs][vector][row of the vector][input % kInputs]. The rows of vector v are v, v + 4,
// v + 8 and so on, the order in which Simd::quarter_totals returns them.
template <class Kind>
inline void pack_panel(const typename Kind::W* w, Size w_stride, Size rows, Size depth, typename Kind::Packed* panel) {
    for (Size k = 0; k < depth; k += kStep<Kind>) {
        for (Size v = 0; v < 4; ++v) {
            typename Kind::V vectors[kVectorRows];
            load_vectors<Kind>(w + v * w_stride + k, 4 * w_stride, (rows - v + 3) / 4, depth - k, vectors);
            for (int j = 0; j < kVectorRows; ++j) {
                Kind::store(panel + 4 * kVectorRows * k + (4 * j + v) * kStep<Kind>, vectors[j]);
            }
        }
    }
}

// Rows of w to prefetch while a tile is computed: those of the next panel.
template <class W>
struct Prefetch {
    const W* w;
    Size stride, rows;
};

template <class Kind, int Rows>
inline void panel_tile(const typename Kind::X* x, Size x_stride, const typename Kind::Packed* panel, Size depth, float* to,
                       bool is_first, const Prefetch<typename Kind::W>& ahead) {
    Simd::F sums[Rows][4];
    for (int t = 0; t < Rows; ++t)
        for (int v = 0; v < 4; ++v) sums[t][v] = Simd::zero();
    for (Size k = 0; k < depth; k += kStep<Kind>) {
        for (Size n = 0; n < ahead.rows; ++n) LLMCTL_PREFETCH(ahead.w + n * ahead.stride + k);
        for (Size j = k; j < k + kStep<Kind>; j += Kind::kInputs, panel += 4 * kStep<Kind>) {
            typename Kind::V row[Rows];
            for (int t = 0; t < Rows; ++t) row[t] = Kind::four_times(x + t * x_stride + j);
            for (int v = 0; v < 4; ++v) {
                const auto w = Kind::load(panel + v * kStep<Kind>);
                for (int t = 0; t < Rows; ++t) sums[t][v] = Kind::dot(sums[t][v], row[t], w);
            }
        }
    }
    for (int t = 0; t < Rows; ++t) {
        const auto total = Simd::quarter_totals(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
        float* place = to + t * kDenseRows;
        Simd::store(place, is_first ? total : Simd::add(Simd::load(place), total));
    }
}

// All rows of x, in tiles of about the same height.
template <class Kind>
inline void panel_product(const typename Kind::X* x, Size x_stride, Size rows, const typename Kind::Packed* panel, Size depth,
                          float* to, bool is_first, const Prefetch<typename Kind::W>& next) {
    const Size all = llmctl::ceil_div(rows, kTileRows);
    for (Size tile = 0; tile < all; ++tile) {
        const Size height = llmctl::ceil_div(rows, all - tile), begin = next.rows * tile / all;
        const Prefetch<typename Kind::W> ahead{next.w + begin * next.stride, next.stride,
                                               next.rows * (tile + 1) / all - begin};
        switch (height) {
            case 1: panel_tile<Kind, 1>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 2: panel_tile<Kind, 2>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 3: panel_tile<Kind, 3>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 4: panel_tile<Kind, 4>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 5: panel_tile<Kind, 5>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 6: panel_tile<Kind, 6>(x, x_stride, panel, depth, to, is_first, ahead); break;
        }
        x += height * x_stride;
        to += height * kDenseRows;
        rows -= height;
    }
}

// Up to kStreamedRows rows of w in their own order.
template <class Kind, int Rows>
inline void stream(const typename Kind::X* x, Size x_stride, const typename Kind::W* w, Size w_stride, Size count, Size depth,
                   float* to, bool is_first) {
    constexpr int kVectors = kStreamedRows / kVectorRows;
    Simd::F sums[kVectors][Rows];
    for (int v = 0; v < kVectors; ++v)
        for (int t = 0; t < Rows; ++t) sums[v][t] = Simd::zero();
    for (Size k = 0; k < depth; k += kStep<Kind>) {
        typename Kind::V vectors[kVectors][kVectorRows];
        for (int v = 0; v < kVectors; ++v) {
            const typename Kind::W* place = w + v * kVectorRows * w_stride + k;
            for (int n = 0; n < kVectorRows; ++n) LLMCTL_PREFETCH_FAR(place + (kStreamedRows + n) * w_stride);
            load_vectors<Kind>(place, w_stride, count - v * kVectorRows, depth - k, vectors[v]);
        }
        for (int j = 0; j < kVectorRows; ++j)
            for (int t = 0; t < Rows; ++t) {
                const auto row = Kind::four_times(x + t * x_stride + k + Kind::kInputs * j);
                for (int v = 0; v < kVectors; ++v) sums[v][t] = Kind::dot(sums[v][t], row, vectors[v][j]);
            }
    }
    for (int v = 0; v < kVectors; ++v)
        for (int t = 0; t < Rows; ++t) {
            const auto sum = sums[v][t];
            float totals[Simd::kLanes];
            Simd::store(totals, Simd::quarter_totals(sum, sum, sum, sum));
            for (int n = 0; n < kVectorRows; ++n) {
                float* place = to + t * kDenseRows + kVectorRows * v + n;
                *place = is_first ? totals[4 * n] : *place + totals[4 * n];
            }
        }
}

// `count` rows of w, at most kDenseRows, times `rows` rows of x.
template <class Kind>
inline void product(const typename Kind::X* x, Size x_stride, Size rows, const typename Kind::W* w, Size w_stride, Size count,
                    Size depth, float* to, bool is_first, typename Kind::Packed* panel) {
    const Size whole = llmctl::ceil_div(depth, kStep<Kind>) * kStep<Kind>, height = rows > kFewRows ? kPanelRows : kStreamedRows;
    for (Size n = 0; n < count; n += height, w += height * w_stride, to += height) {
        const Size some = count - n < height ? count - n : height;
        switch (rows > kFewRows ? 0 : rows) {
            case 1: stream<Kind, 1>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            case 2: stream<Kind, 2>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            case 3: stream<Kind, 3>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            case 4: stream<Kind, 4>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            default:
                pack_panel<Kind>(w, w_stride, some, depth, panel);
                panel_product<Kind>(x, x_stride, rows, panel, whole, to, is_first, {w + height * w_stride, w_stride, height});
        }
    }
}

template <class Kind>
inline void dense_columns(const llmctl::DenseLinear& job, Size n_begin, Size n_end, float* scratch) {
    float* results = scratch;
    auto* panel = reinterpret_cast<typename Kind::Packed*>(scratch + kDenseRows * kDenseTokens);
    const auto* x = static_cast<const typename Kind::X*>(job.x);
    const auto* w = static_cast<const typename Kind::W*>(job.w);
    // With few rows of x memory is the limit: w is read nearly in its own order, a few whole rows at a time.
    const Size height = job.rows <= kFewRows ? kStreamedRows : kDenseRows;
    for (Size first = 0; first < job.rows; first += kDenseTokens) {
        const Size rows = job.rows - first < kDenseTokens ? job.rows - first : kDenseTokens;
        for (Size begin = n_begin; begin < n_end; begin += height) {
            const Size count = n_end - begin < height ? n_end - begin : height;
            for (Size k = 0; k < job.k; k += Kind::kDepth) {
                const Size depth = job.k - k < Kind::kDepth ? job.k - k : Kind::kDepth;
                product<Kind>(x + first * job.x_stride + k, job.x_stride, rows, w + begin * job.k + k, job.k, count, depth,
                              results, k == 0, panel);
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
        dense_columns<WeightF32>(job, n_begin, n_end, scratch);
    } else if (job.w_dtype == llmctl::kF16) {
        dense_columns<WeightF16>(job, n_begin, n_end, scratch);
#ifdef LLMCTL_BF16_DOT
    } else if (job.x_dtype == llmctl::kBF16) {
        dense_columns<InPairs>(job, n_begin, n_end, scratch);
#endif
    } else {
        dense_columns<WeightBF16>(job, n_begin, n_end, scratch);
    }
}

}  // namespace
