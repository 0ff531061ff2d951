// y = x @ w^T with w as torch stores it. A vector holds consecutive inputs of one row. The products of a row of w and a row of x
// are summed in the lanes of one vector; at the end the lanes are added, in the same order for any number of rows. For few rows
// of x, w is read in its own order, four rows together; for many, some rows of w are first copied to a panel.
//
// The inputs are cut at multiples of a fixed depth, and the sums of the parts are added one after the other: a result depends
// neither on the other rows of x nor on threads.
#pragma once

#include "kernels.h"

namespace {

using llmctl::kDenseRows;
using llmctl::kDenseTokens;

}  // namespace

#ifdef LLMCTL_TILES
#include "dense_tiles.h"
#endif

namespace {

constexpr Size kPanelRows = 8;                           // rows of w in a panel, multiplied in groups of four
constexpr int kTileRows = Simd::kLanes == 8 ? 3 : 6;     // rows of x in a tile, limited by the number of registers
constexpr Size kFewRows = Simd::kLanes == 16 ? 4 : 2;    // rows of x that are multiplied as fast as w is read
constexpr Size kStreamedRows = 4;                        // rows of w that are read together then

// Products in float32.
template <class Stored>
struct InFloats {
    using X = float;
    using W = Stored;
    using Packed = float;
    using V = Simd::F;
    static constexpr Size kInputs = Simd::kLanes, kDepth = llmctl::kDenseScratch / (kPanelRows * 4);
    static V load(const float* p) { return Simd::load(p); }
    static void store(float* p, V v) { Simd::store(p, v); }
    static V dot(V sum, V x, V w) { return Simd::fma(x, w, sum); }
};
struct WeightF32 : InFloats<float> {
    static V convert(const float* p) { return Simd::load(p); }
};
struct WeightBF16 : InFloats<uint16_t> {
    static V convert(const uint16_t* p) { return Simd::load(p); }
};
struct WeightF16 : InFloats<uint16_t> {
    static V convert(const uint16_t* p) { return Simd::load_f16(p); }
};

#ifdef LLMCTL_BF16_DOT
// Products of pairs of bfloat16, by the processor's instruction for them.
struct InPairs {
    using X = uint16_t;
    using W = uint16_t;
    using Packed = uint16_t;
    using V = Simd::P;
    static constexpr Size kInputs = 2 * Simd::kLanes, kDepth = llmctl::kDenseScratch / (kPanelRows * 2);
    static V load(const uint16_t* p) { return Simd::load_pairs(p); }
    static V convert(const uint16_t* p) { return Simd::load_pairs(p); }
    static void store(uint16_t* p, V v) { Simd::store_pairs(p, v); }
    static Simd::F dot(Simd::F sum, V x, V w) { return Simd::dot(sum, x, w); }
};
#endif

template <class Kind>
constexpr Size kLine = 64 / Size(sizeof(typename Kind::W));  // elements of w in a cache line

// The sums of a tile: of each row of x with four rows of w.
template <int Rows>
struct Tile {
    Simd::F sums[Rows][4];

    Tile() {
        for (int t = 0; t < Rows; ++t)
            for (int n = 0; n < 4; ++n) sums[t][n] = Simd::zero();
    }
    // Add the products of kLine inputs. `weight(n, j)` returns a vector of row n of w, from input j on.
    template <class Kind, class Weight>
    LLMCTL_INLINE void add_line(const typename Kind::X* x, Size x_stride, const Weight& weight) {
        for (Size j = 0; j < kLine<Kind>; j += Kind::kInputs) {
            typename Kind::V row[Rows];
            for (int t = 0; t < Rows; ++t) row[t] = Kind::load(x + t * x_stride + j);
            for (int n = 0; n < 4; ++n) {
                const auto w = weight(n, j);
                for (int t = 0; t < Rows; ++t) sums[t][n] = Kind::dot(sums[t][n], row[t], w);
            }
        }
    }
    LLMCTL_INLINE void finish(float* to, bool is_first) const {
        for (int t = 0; t < Rows; ++t) {
            float totals[4], *place = to + t * kDenseRows;
            Simd::store_totals(totals, sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
            for (int n = 0; n < 4; ++n) place[n] = is_first ? totals[n] : place[n] + totals[n];
        }
    }
};

// Copy a row of w to lines of `to` that are `apart` lines apart; elements after `depth` are zero.
template <class Kind>
inline void copy_row(const typename Kind::W* row, Size depth, Size apart, typename Kind::Packed* to) {
    const auto copy_line = [](const typename Kind::W* from, typename Kind::Packed* place) {
        for (Size j = 0; j < kLine<Kind>; j += Kind::kInputs) Kind::store(place + j, Kind::convert(from + j));
    };
    Size k = 0;
    for (; k + kLine<Kind> <= depth; k += kLine<Kind>) copy_line(row + k, to + apart * k);
    if (k < depth) {
        typename Kind::W rest[kLine<Kind>] = {};
        std::memcpy(rest, row + k, static_cast<size_t>(depth - k) * sizeof rest[0]);
        copy_line(rest, to + apart * k);
    }
}

// Rows of w to prefetch while a tile is computed: those of the next panel.
template <class W>
struct Prefetch {
    const W* w;
    Size stride, rows;
};

// A panel has groups of four rows: [group][input / kLine][row of the group][input % kLine].
template <class Kind, int Rows>
inline void panel_tile(const typename Kind::X* x, Size x_stride, const typename Kind::Packed* panel, Size count, Size depth,
                       float* to, bool is_first, Prefetch<typename Kind::W> ahead) {
    for (Size first = 0; first < count; first += 4, panel += 4 * depth, to += 4, ahead.rows = 0) {
        Tile<Rows> tile;
        for (Size k = 0; k < depth; k += kLine<Kind>) {
            for (Size n = 0; n < ahead.rows; ++n) LLMCTL_PREFETCH(ahead.w + n * ahead.stride + k);
            tile.template add_line<Kind>(x + k, x_stride,
                                         [&](int n, Size j) { return Kind::load(panel + 4 * k + n * kLine<Kind> + j); });
        }
        tile.finish(to, is_first);
    }
}

// All rows of x, in tiles of about the same height.
template <class Kind>
inline void panel_product(const typename Kind::X* x, Size x_stride, Size rows, const typename Kind::Packed* panel, Size count,
                          Size depth, float* to, bool is_first, const Prefetch<typename Kind::W>& next) {
    const Size all = llmctl::ceil_div(rows, kTileRows);
    for (Size tile = 0; tile < all; ++tile) {
        const Size height = llmctl::ceil_div(rows, all - tile), begin = next.rows * tile / all;
        const Prefetch<typename Kind::W> ahead{next.w + begin * next.stride, next.stride,
                                               next.rows * (tile + 1) / all - begin};
        switch (height) {
            case 1: panel_tile<Kind, 1>(x, x_stride, panel, count, depth, to, is_first, ahead); break;
            case 2: panel_tile<Kind, 2>(x, x_stride, panel, count, depth, to, is_first, ahead); break;
            case 3: panel_tile<Kind, 3>(x, x_stride, panel, count, depth, to, is_first, ahead); break;
            case 4: panel_tile<Kind, 4>(x, x_stride, panel, count, depth, to, is_first, ahead); break;
            case 5: panel_tile<Kind, 5>(x, x_stride, panel, count, depth, to, is_first, ahead); break;
            case 6: panel_tile<Kind, 6>(x, x_stride, panel, count, depth, to, is_first, ahead); break;
        }
        x += height * x_stride;
        to += height * kDenseRows;
        rows -= height;
    }
}

// Up to kStreamedRows rows of w in their own order. Absent rows are replaced by the last one; their results are not used.
template <class Kind, int Rows>
inline void stream(const typename Kind::X* x, Size x_stride, const typename Kind::W* w, Size w_stride, Size count, Size depth,
                   float* to, bool is_first) {
    const typename Kind::W* row[kStreamedRows];
    for (Size n = 0; n < kStreamedRows; ++n) row[n] = w + (n < count ? n : count - 1) * w_stride;
    Tile<Rows> tile;
    Size k = 0;
    for (; k + kLine<Kind> <= depth; k += kLine<Kind>) {
        for (Size n = 0; n < kStreamedRows; ++n) LLMCTL_PREFETCH_FAR(row[n] + kStreamedRows * w_stride + k);
        tile.template add_line<Kind>(x + k, x_stride, [&](int n, Size j) { return Kind::convert(row[n] + k + j); });
    }
    if (k < depth) {
        typename Kind::Packed rest[kStreamedRows][kLine<Kind>];
        for (Size n = 0; n < kStreamedRows; ++n) copy_row<Kind>(row[n] + k, depth - k, 1, rest[n]);
        tile.template add_line<Kind>(x + k, x_stride, [&](int n, Size j) { return Kind::load(rest[n] + j); });
    }
    tile.finish(to, is_first);
}

// `count` rows of w, at most kDenseRows, times `rows` rows of x.
template <class Kind>
inline void product(const typename Kind::X* x, Size x_stride, Size rows, const typename Kind::W* w, Size w_stride, Size count,
                    Size depth, float* to, bool is_first, typename Kind::Packed* panel) {
    const Size whole = llmctl::ceil_div(depth, kLine<Kind>) * kLine<Kind>, height = rows > kFewRows ? kPanelRows : kStreamedRows;
    for (Size n = 0; n < count; n += height, w += height * w_stride, to += height) {
        const Size some = count - n < height ? count - n : height;
        switch (rows > kFewRows ? 0 : rows) {
            case 1: stream<Kind, 1>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            case 2: stream<Kind, 2>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            case 3: stream<Kind, 3>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            case 4: stream<Kind, 4>(x, x_stride, w, w_stride, some, depth, to, is_first); break;
            default:
                for (Size r = 0; r < some; ++r) {
                    copy_row<Kind>(w + r * w_stride, depth, 4, panel + r / 4 * 4 * whole + r % 4 * kLine<Kind>);
                }
                panel_product<Kind>(x, x_stride, rows, panel, some, whole, to, is_first, {w + height * w_stride, w_stride, height});
        }
    }
}

template <class Kind>
inline void dense_columns(const llmctl::DenseLinear& job, Size n_begin, Size n_end, float* scratch) {
    float* results = scratch;
    auto* panel = reinterpret_cast<typename Kind::Packed*>(scratch + kDenseRows * kDenseTokens);
    const auto* x = static_cast<const typename Kind::X*>(job.x);
    const auto* w = static_cast<const typename Kind::W*>(job.w);
    // With few rows of x memory is the limit: w is read in its own order, a few whole rows at a time.
    const Size height = job.rows <= kFewRows && job.k > Kind::kDepth ? kStreamedRows : kDenseRows;
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
#ifdef LLMCTL_TILES
    } else if (job.x_dtype == llmctl::kBF16) {
        linear_tiles(job, n_begin, n_end, scratch);
#elif defined(LLMCTL_BF16_DOT)
    } else if (job.x_dtype == llmctl::kBF16) {
        dense_columns<InPairs>(job, n_begin, n_end, scratch);
#endif
    } else {
        dense_columns<WeightBF16>(job, n_begin, n_end, scratch);
    }
}

}  // namespace
