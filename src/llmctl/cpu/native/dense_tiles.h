// y = x @ w^T of bfloat16 on a processor with matrix tiles (AMX). A tile of w is 16 rows of 32 inputs, read in place; a tile of
// x is 32 inputs of up to 16 rows, as pairs of inputs side by side (DenseLinear). A result is one sum over the pairs of
// inputs in their order, for any number of rows: AMX is used for all of them, from one row on.
#pragma once

#include "kernels.h"

namespace {

using llmctl::kTileColumns;
using llmctl::kTileInputs;

constexpr Size kTilesAhead = 256;  // inputs between prefetch and use

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// The compiler does not know which memory the instructions for tiles read.
inline void is_read(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

// Sums are the tiles 0 to 3, x is in 4 and 5 (with `first` and `second` columns), w in 6 and 7.
inline void configure_tiles(Size first, Size second) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
        const Size columns = i < 6 ? (i % 2 == 0 ? first : second) : kTileColumns;
        if (columns == 0) continue;
        config.rows[i] = 16;
        config.row_bytes[i] = static_cast<uint16_t>(columns * 4);
    }
    is_read(&config);
    _tile_loadconfig(&config);
}

// Rows of w: 16 of 32 inputs each, in place or, at the edges of w, copied with zeros after them.
struct WeightTile {
    const uint16_t* w;
    Size stride, rows, depth;
    alignas(64) uint16_t copy[16 * kTileInputs];

    WeightTile(const uint16_t* of, Size k, Size count) : w(of), stride(k), rows(count), depth(k) {}
    const uint16_t* at(Size k, Size& row_stride) {
        if (rows >= 16 && k + kTileInputs <= depth) {
            row_stride = stride;
            return w + k;
        }
        const Size count = depth - k < kTileInputs ? depth - k : kTileInputs;
        std::memset(copy, 0, sizeof copy);
        for (Size r = 0; r < rows && r < 16; ++r) {
            std::memcpy(copy + r * kTileInputs, w + r * stride + k, static_cast<size_t>(count) * 2);
        }
        is_read(copy);
        row_stride = kTileInputs;
        return copy;
    }
};

// Bytes from row to row of a stored tile of sums.
inline Size sums_stride(Size columns) { return columns == 1 ? 4 : 64; }

// Copy a tile of sums [row of w][row of x] to `to` [row of x][row of w].
inline void store_columns(const float* sums, Size columns, float* to) {
    if (columns == 1) {
        Simd::store(to, Simd::load(sums));
        return;
    }
    Simd::F rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = Simd::load(sums + 16 * i);
    Simd::transpose(rows);
    for (Size t = 0; t < columns; ++t) Simd::store(to + t * kDenseRows, rows[t]);
}

// Up to 32 rows of w times the rows of x in two tiles of `first` and `second` columns, side by side.
template <bool TwoX, bool TwoW>
inline void tile_product(const uint16_t* x, Size first, Size second, Size x_stride, const uint16_t* w, Size k, Size count,
                         bool prefetches, float* to) {
    WeightTile upper(w, k, count), lower(w + 16 * k, k, count - 16);
    const uint16_t* other = x + first * x_stride;
    _tile_zero(0);
    if (TwoX) _tile_zero(1);
    if (TwoW) _tile_zero(2);
    if (TwoX && TwoW) _tile_zero(3);
    for (Size j = 0; j < k; j += kTileInputs) {
        if (prefetches) {  // the same rows, or at their end the next ones
            const uint16_t* ahead = j + kTilesAhead < k ? w + j + kTilesAhead : w + count * k + (j + kTilesAhead - k);
            for (Size n = 0; n < (TwoW ? 32 : 16); ++n) LLMCTL_PREFETCH_FAR(ahead + n * k);
        }
        Size stride = 0;
        const uint16_t* place = upper.at(j, stride);
        _tile_loadd(4, x + j * first, first * 4);
        _tile_loadd(6, place, stride * 2);
        _tile_dpbf16ps(0, 6, 4);
        if (TwoX) {
            _tile_loadd(5, other + j * second, second * 4);
            _tile_dpbf16ps(1, 6, 5);
        }
        if (TwoW) {
            place = lower.at(j, stride);
            _tile_loadd(7, place, stride * 2);
            _tile_dpbf16ps(2, 7, 4);
            if (TwoX) _tile_dpbf16ps(3, 7, 5);
        }
    }
    alignas(64) float sums[16 * 16];
    _tile_stored(0, sums, sums_stride(first));
    store_columns(sums, first, to);
    if (TwoX) {
        _tile_stored(1, sums, sums_stride(second));
        store_columns(sums, second, to + first * kDenseRows);
    }
    if (TwoW) {
        _tile_stored(2, sums, sums_stride(first));
        store_columns(sums, first, to + 16);
    }
    if (TwoX && TwoW) {
        _tile_stored(3, sums, sums_stride(second));
        store_columns(sums, second, to + first * kDenseRows + 16);
    }
}

inline void linear_tiles(const llmctl::DenseLinear& job, Size n_begin, Size n_end, float* results) {
    const auto* x = static_cast<const uint16_t*>(job.x);
    Size configured = 0;
    for (Size t = 0; t < job.rows; t += 2 * kTileColumns, x += 2 * kTileColumns * job.x_stride) {
        const Size left = job.rows - t, rows = left < 2 * kTileColumns ? left : 2 * kTileColumns;
        const Size first = rows < kTileColumns ? rows : kTileColumns, second = rows - first;
        if (rows != configured) configure_tiles(first, second);
        configured = rows;
        for (Size n = n_begin; n < n_end; n += 2 * kTileColumns) {
            const Size count = n_end - n < 32 ? n_end - n : 32;
            const uint16_t* w = static_cast<const uint16_t*>(job.w) + n * job.k;
            float* to = results + n - n_begin;
            const auto product = second > 0 ? (count > 16 ? tile_product<true, true> : tile_product<true, false>)
                                            : (count > 16 ? tile_product<false, true> : tile_product<false, false>);
            product(x, first, second, job.x_stride, w, job.k, count, t == 0, to);
        }
        for (Size row = 0; row < rows; ++row) {
            for (Size n = n_begin; n < n_end; n += 16) {
                store_results(results + row * kDenseRows + n - n_begin, job.bias ? job.bias + n : nullptr,
                              advanced(job.y, job.y_dtype, (t + row) * job.n + n), job.y_dtype,
                              n_end - n < 16 ? n_end - n : 16);
            }
        }
    }
    _tile_release();
}

}  // namespace
