// y = x @ w^T with w as torch stores it: dot products along the inputs, tiles of rows of x times four rows of w. The inputs
// are cut at multiples of a fixed depth. Each part is summed in the lanes of one vector, then over the lanes in a fixed
// order, then part after part: a result depends neither on the other rows of x nor on threads.
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

// Products of x and w in float32.
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
constexpr Size kFewRows = 2;                          // rows of x that are multiplied as fast as w is read
constexpr int kTileRows = Simd::kLanes == 16 ? 4 : 2;  // limited by the number of registers

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

// Four rows of w times many rows of x: w is converted to float32 once.
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

// The product of a few rows of w and some rows of x in float32.
template <class Weight>
struct Widened : InF32<Weight> {
    using Kind = InF32<Weight>;
    using typename Kind::W;
    using typename Kind::X;
    static constexpr Size kStreamed = 4;
    static void product(const X* x, Size x_stride, Size rows, const W* w, Size w_stride, Size count, Size depth, float* to,
                        bool is_first, float* panel) {
        Size n = 0;
        for (; n + 4 <= count; n += 4) {
            if constexpr (sizeof(W) == 2) {
                if (rows > 2 * kTileRows) {
                    widened_rows<Weight>(x, x_stride, rows, w + n * w_stride, w_stride, depth, to + n, is_first, panel);
                    continue;
                }
            }
            dense_rows<Kind, 4>(x, x_stride, rows, w + n * w_stride, w_stride, depth, to + n, is_first);
        }
        for (; n < count; ++n) {
            dense_rows<Kind, 1>(x, x_stride, rows, w + n * w_stride, w_stride, depth, to + n, is_first);
        }
    }
};

template <class Method>
inline void dense_columns(const llmctl::DenseLinear& job, Size n_begin, Size n_end, float* scratch) {
    float* results = scratch;
    float* panel = scratch + kDenseRows * kDenseTokens;
    const auto* x = static_cast<const typename Method::X*>(job.x);
    const auto* w = static_cast<const typename Method::W*>(job.w);
    // With few rows of x memory is the limit: w is read nearly in its own order, a few whole rows at a time.
    const Size height = job.rows <= kFewRows ? Method::kStreamed : kDenseRows;
    for (Size first = 0; first < job.rows; first += kDenseTokens) {
        const Size rows = job.rows - first < kDenseTokens ? job.rows - first : kDenseTokens;
        for (Size begin = n_begin; begin < n_end; begin += height) {
            const Size count = n_end - begin < height ? n_end - begin : height;
            for (Size k = 0; k < job.k; k += Method::kDepth) {
                const Size depth = job.k - k < Method::kDepth ? job.k - k : Method::kDepth;
                Method::product(x + first * job.x_stride + k, job.x_stride, rows, w + begin * job.k + k, job.k, count, depth,
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

#ifdef LLMCTL_BF16_DOT
// Products of pairs of bfloat16, by the processor's instruction for them. A vector holds eight inputs of each of four rows of
// w, to be multiplied by the same eight inputs of a row of x. So a result is the sum of four lanes, added in the same order
// for any number of rows. For many rows of x, w is first copied to a panel in this order; for few it is read in its own.
constexpr Size kPairStep = 32;    // inputs that are reordered together
constexpr int kPairRows = 6;      // rows of x in a tile
constexpr int kPairColumns = 16;  // rows of w in a tile

inline void load_quads(const uint16_t* w, Size w_stride, Size rows, Size depth, Simd::P (&quads)[4]) {
    if (rows == 4 && depth >= kPairStep) {
        Simd::quads(w, w + w_stride, w + 2 * w_stride, w + 3 * w_stride, quads);
        return;
    }
    uint16_t rest[4][kPairStep] = {};
    for (Size n = 0; n < rows && n < 4; ++n) {
        std::memcpy(rest[n], w + n * w_stride, static_cast<size_t>(depth < kPairStep ? depth : kPairStep) * 2);
    }
    Simd::quads(rest[0], rest[1], rest[2], rest[3], quads);
}

// Up to sixteen rows of w: [step][quarter][four rows][32].
inline void pack_pairs(const uint16_t* w, Size w_stride, Size rows, Size depth, uint16_t* panel) {
    for (Size k = 0; k < depth; k += kPairStep) {
        for (Size group = 0; group < 4; ++group) {
            Simd::P quads[4];
            const Size left = rows - 4 * group;
            load_quads(w + 4 * group * w_stride + k, w_stride, left < 0 ? 0 : left > 4 ? 4 : left, depth - k, quads);
            for (int j = 0; j < 4; ++j) Simd::store_pairs(panel + kPairColumns * k + (4 * j + group) * 32, quads[j]);
        }
    }
}

// Rows of w to prefetch while a tile is computed: those of the next panel.
struct Prefetch {
    const uint16_t* w;
    Size stride, rows;
};

template <int Rows>
inline void pair_tile(const uint16_t* x, Size x_stride, const uint16_t* panel, Size depth, float* to, bool is_first,
                      const Prefetch& ahead) {
    Simd::F sums[Rows][4];
    for (int t = 0; t < Rows; ++t)
        for (int group = 0; group < 4; ++group) sums[t][group] = Simd::zero();
    for (Size k = 0; k < depth; k += kPairStep) {
        for (Size n = 0; n < ahead.rows; ++n) LLMCTL_PREFETCH(ahead.w + n * ahead.stride + k);
        for (Size j = k; j < k + kPairStep; j += 8, panel += 4 * 32) {
            Simd::P w[4];
            for (int group = 0; group < 4; ++group) w[group] = Simd::load_pairs(panel + group * 32);
            for (int t = 0; t < Rows; ++t) {
                const auto eight = Simd::four_times(x + t * x_stride + j);
                for (int group = 0; group < 4; ++group) sums[t][group] = Simd::dot(sums[t][group], eight, w[group]);
            }
        }
    }
    for (int t = 0; t < Rows; ++t) {
        const auto total = Simd::quad_totals(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
        float* place = to + t * kDenseRows;
        Simd::store(place, is_first ? total : Simd::add(Simd::load(place), total));
    }
}

// Rows of w in their own order, four at a time.
template <int Rows, int Groups>
inline void pair_stream(const uint16_t* x, Size x_stride, const uint16_t* w, Size w_stride, Size count, Size depth, float* to,
                        bool is_first) {
    Simd::F sums[Groups][Rows];
    for (int group = 0; group < Groups; ++group)
        for (int t = 0; t < Rows; ++t) sums[group][t] = Simd::zero();
    for (Size k = 0; k < depth; k += kPairStep) {
        Simd::P quads[Groups][4];
        for (int group = 0; group < Groups; ++group) {
            const Size left = count - 4 * group;
            for (int n = 0; n < 4; ++n) LLMCTL_PREFETCH_FAR(w + (4 * (Groups + group) + n) * w_stride + k);
            load_quads(w + 4 * group * w_stride + k, w_stride, left < 0 ? 0 : left > 4 ? 4 : left, depth - k, quads[group]);
        }
        for (int j = 0; j < 4; ++j)
            for (int t = 0; t < Rows; ++t) {
                const auto eight = Simd::four_times(x + t * x_stride + k + 8 * j);
                for (int group = 0; group < Groups; ++group) {
                    sums[group][t] = Simd::dot(sums[group][t], eight, quads[group][j]);
                }
            }
    }
    for (int group = 0; group < Groups; ++group)
        for (int t = 0; t < Rows; ++t) {
            const auto sum = sums[group][t];
            float totals[16];
            Simd::store(totals, Simd::quad_totals(sum, sum, sum, sum));
            for (int n = 0; n < 4; ++n) {
                float* place = to + t * kDenseRows + 4 * group + n;
                *place = is_first ? totals[n] : *place + totals[n];
            }
        }
}

// All rows of x, in tiles of about the same height; `next` are the rows of w after those of the panel.
inline void pair_rows(const uint16_t* x, Size x_stride, Size rows, const uint16_t* panel, Size depth, float* to, bool is_first,
                      const Prefetch& next) {
    const Size all = llmctl::ceil_div(rows, kPairRows);
    for (Size tile = 0; tile < all; ++tile) {
        const Size height = llmctl::ceil_div(rows, all - tile), begin = next.rows * tile / all;
        const Prefetch ahead{next.w + begin * next.stride, next.stride, next.rows * (tile + 1) / all - begin};
        switch (height) {
            case 1: pair_tile<1>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 2: pair_tile<2>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 3: pair_tile<3>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 4: pair_tile<4>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 5: pair_tile<5>(x, x_stride, panel, depth, to, is_first, ahead); break;
            case 6: pair_tile<6>(x, x_stride, panel, depth, to, is_first, ahead); break;
        }
        x += height * x_stride;
        to += height * kDenseRows;
        rows -= height;
    }
}

// `count` rows of w, at most kDenseRows, times `rows` rows of x.
inline void pair_product(const uint16_t* x, Size x_stride, Size rows, const uint16_t* w, Size w_stride, Size count, Size depth,
                         float* to, bool is_first, uint16_t* panel) {
    const Size whole = llmctl::ceil_div(depth, kPairStep) * kPairStep;
    if (rows > kFewRows) {
        for (Size n = 0; n < count; n += kPairColumns) {
            pack_pairs(w + n * w_stride, w_stride, count - n < kPairColumns ? count - n : kPairColumns, depth, panel);
            const Prefetch next{w + (n + kPairColumns) * w_stride, w_stride, kPairColumns};
            pair_rows(x, x_stride, rows, panel, whole, to + n, is_first, next);
        }
        return;
    }
    constexpr int kGroups = 2;
    for (Size n = 0; n < count; n += 4 * kGroups) {
        const Size some = count - n < 4 * kGroups ? count - n : 4 * kGroups;
        if (rows == 1) {
            pair_stream<1, kGroups>(x, x_stride, w + n * w_stride, w_stride, some, depth, to + n, is_first);
        } else {
            pair_stream<2, kGroups>(x, x_stride, w + n * w_stride, w_stride, some, depth, to + n, is_first);
        }
    }
}

struct InPairs {
    using X = uint16_t;
    using W = uint16_t;
    static constexpr Size kDepth = kDenseDepth, kStreamed = 8;
    static void product(const X* x, Size x_stride, Size rows, const W* w, Size w_stride, Size count, Size depth, float* to,
                        bool is_first, float* panel) {
        pair_product(x, x_stride, rows, w, w_stride, count, depth, to, is_first, reinterpret_cast<uint16_t*>(panel));
    }
};
#endif

inline void linear_dense(const llmctl::DenseLinear& job, Size n_begin, Size n_end, float* scratch) {
    if (job.w_dtype == llmctl::kF32) {
        dense_columns<Widened<WeightF32>>(job, n_begin, n_end, scratch);
    } else if (job.w_dtype == llmctl::kF16) {
        dense_columns<Widened<WeightF16>>(job, n_begin, n_end, scratch);
#ifdef LLMCTL_BF16_DOT
    } else if (job.x_dtype == llmctl::kBF16) {
        dense_columns<InPairs>(job, n_begin, n_end, scratch);
#endif
    } else {
        dense_columns<Widened<WeightBF16>>(job, n_begin, n_end, scratch);
    }
}

}  // namespace
