// y = x @ w^T with w as 8-bit or 4-bit codes in blocks of 32 that share a scale. x is quantised to 8 bits first.
//
// Sixteen output rows are interleaved: one vector holds four inputs of each row, and the same four inputs of x are
// multiplied by all of them. Every lane is one output, the sum of a block is exact, and the scaled sums of the blocks are
// added in order. Therefore the result depends neither on the number of rows of x, nor on threads, nor on the vector width.
#pragma once

#include "kernels.h"

namespace {

using llmctl::kBlock;
using llmctl::kGroup;

// Quantise rows begin..end of x (whole tiles) to 8 bits. A block with a number that is not finite gets a scale that is not.
inline void quantize_rows(const void* x, int dtype, const llmctl::QuantizedRows& to, Size begin, Size end) {
    for (Size t = begin; t < end; ++t) {
        const Size first = t / to.tile * to.tile;
        const Size height = to.rows - first < to.tile ? to.rows - first : to.tile;
        const void* row = advanced(x, dtype, t * to.k);
        for (Size b = 0; b < to.blocks; ++b) {
            alignas(64) float values[kBlock];
            const Size count = to.k - b * kBlock < kBlock ? to.k - b * kBlock : kBlock;
            if (count < kBlock) std::memset(values, 0, sizeof values);
            convert_to_f32(advanced(row, dtype, b * kBlock), dtype, values, count);
            int32_t largest = 0;
            for (Size i = 0; i < kBlock; ++i) {
                const int32_t bits = static_cast<int32_t>(as_bits(values[i]) & 0x7fffffffu);
                largest = bits > largest ? bits : largest;
            }
            const bool is_finite = largest < 0x7f800000;
            const float peak = as_float(static_cast<uint32_t>(largest));
            const bool is_zero = peak < 1e-30f;
            const float inverse = is_finite && !is_zero ? 127.0f / peak : 0.0f;
            const Size place = first * to.blocks + b * height + (t - first);
            int8_t* codes = to.codes + place * kBlock;
            int32_t sum = 0;
            for (Size i = 0; i < kBlock; ++i) {  // adding 1.5 * 2^23 rounds to a whole number, ties to even
                const float scaled = is_finite ? values[i] * inverse : 0.0f;
                const int32_t code = static_cast<int32_t>(as_bits(scaled + 12582912.0f)) - 0x4b400000;
                codes[i] = static_cast<int8_t>(code);
                sum += code;
            }
            to.scales[place] = is_finite ? (is_zero ? 0.0f : peak / 127.0f) : as_float(0x7fc00000u);
            to.offsets[place] = -128 * sum;
        }
    }
}

// The values of the 4-bit codes, and the scales.
struct LlmctlEncoding {
    using Scale = uint16_t;
    static const int8_t* code() { return llmctl::kCode4; }
    static Simd::F scales(const uint16_t* p) { return Simd::load_f16(p); }
};
struct Mxfp4Encoding {
    using Scale = uint8_t;
    static const int8_t* code() { return llmctl::kCodeE2M1; }  // twice the values: half the scales
    static Simd::F scales(const uint8_t* p) { return Simd::mul(Simd::load_e8m0(p), Simd::set(0.5f)); }
};

// The weights of one group, as stored or as bytes for the dot product.
template <class Encoding>
struct Nibbles : Encoding {
    static constexpr Size kBytes = 256;
    static constexpr Size kAhead = 8192;  // bytes between prefetch and use; measured on Zen 4
    static constexpr int kLoads = 4;
};
template <class Encoding>
struct Bytes : Encoding {
    static constexpr Size kBytes = 512;
    static constexpr Size kAhead = 4096;
    static constexpr int kLoads = 8;
    static constexpr bool kReady = Simd::kUnsigned;  // stored codes are 128 too large
};
template <class Encoding>
struct Unpacked : Bytes<Encoding> {
    static constexpr bool kReady = true;
};

// `Slices` vectors of rows of one group, beginning with slice `slice`, times a tile of `Rows` rows of x.
template <class Stored, int Rows, int Slices>
inline void quantized_tile(const uint8_t* w, const typename Stored::Scale* w_scales, const int8_t* x, const float* x_scales,
                           const int32_t* x_offsets, Size blocks, int slice, float (*to)[kGroup]) {
    constexpr int kWidth = 4 * Simd::kLanes;  // bytes of one vector
    const auto table = Simd::code(Stored::code(), Simd::kUnsigned ? 0x80 : 0);
    typename Simd::F sums[Slices][Rows];
    for (int s = 0; s < Slices; ++s)
        for (int t = 0; t < Rows; ++t) sums[s][t] = Simd::zero();
    w += slice * kWidth;
    w_scales += slice * Simd::kLanes;
    for (Size b = 0; b < blocks; ++b) {
        if constexpr (Rows <= 2) {  // limited by memory: prefetched early, across pages too
            for (Size line = 0; line < Stored::kBytes; line += 64) LLMCTL_PREFETCH_FAR(w + Stored::kAhead + line);
            LLMCTL_PREFETCH_FAR(w_scales + Stored::kAhead / Stored::kBytes * kGroup);
        }
        typename Simd::I dots[Slices][Rows];
        for (int s = 0; s < Slices; ++s)
            for (int t = 0; t < Rows; ++t) dots[s][t] = Simd::set_int(Simd::kUnsigned ? x_offsets[t] : 0);
        for (int j = 0; j < Stored::kLoads; ++j) {
            for (int s = 0; s < Slices; ++s) {
                const auto raw = Simd::bytes(w + 64 * j + s * kWidth);
                if constexpr (Stored::kLoads == 4) {
                    const auto low = Simd::low(raw, table), high = Simd::high(raw, table);
                    for (int t = 0; t < Rows; ++t) {
                        dots[s][t] = Simd::dot(dots[s][t], low, Simd::quad(x + t * kBlock + 4 * j));
                        dots[s][t] = Simd::dot(dots[s][t], high, Simd::quad(x + t * kBlock + 4 * j + 16));
                    }
                } else {
                    const auto ready = Stored::kReady ? raw : Simd::flipped(raw);
                    for (int t = 0; t < Rows; ++t) {
                        dots[s][t] = Simd::dot(dots[s][t], ready, Simd::quad(x + t * kBlock + 4 * j));
                    }
                }
            }
        }
        for (int s = 0; s < Slices; ++s) {
            const auto scale = Stored::scales(w_scales + s * Simd::kLanes);
            for (int t = 0; t < Rows; ++t) {
                sums[s][t] = Simd::fma(Simd::floats(dots[s][t]), Simd::mul(scale, Simd::set(x_scales[t])), sums[s][t]);
            }
        }
        w += Stored::kBytes;
        w_scales += kGroup;
        x += Rows * kBlock;
        x_scales += Rows;
        x_offsets += Rows;
    }
    for (int s = 0; s < Slices; ++s)
        for (int t = 0; t < Rows; ++t) Simd::store(to[t] + (slice + s) * Simd::kLanes, sums[s][t]);
}

template <class Stored, int Rows>
inline void quantized_group(const uint8_t* w, const typename Stored::Scale* w_scales, const int8_t* x, const float* x_scales,
                            const int32_t* x_offsets, Size blocks, float (*to)[kGroup]) {
    constexpr int kAll = kGroup / Simd::kLanes;
    constexpr int kSlices = kAll < 2 || Rows > 2 ? (kAll < 4 ? 1 : 2) : kAll;
    for (int slice = 0; slice < kAll; slice += kSlices) {
        quantized_tile<Stored, Rows, kSlices>(w, w_scales, x, x_scales, x_offsets, blocks, slice, to);
    }
}

template <class Stored>
inline void quantized_rows(const llmctl::QuantizedLinear& job, const uint8_t* w, Size group) {
    const llmctl::QuantizedRows& x = job.x;
    const auto* w_scales = static_cast<const typename Stored::Scale*>(job.scales) + group * x.blocks * kGroup;
    const Size n = group * kGroup, count = job.n - n < kGroup ? job.n - n : kGroup;
    const float* bias = job.bias ? job.bias + n : nullptr;
    for (Size first = 0; first < x.rows; first += x.tile) {
        const Size rows = x.rows - first < x.tile ? x.rows - first : x.tile;
        const int8_t* codes = x.codes + first * x.blocks * kBlock;
        const float* scales = x.scales + first * x.blocks;
        const int32_t* offsets = x.offsets + first * x.blocks;
        alignas(64) float results[Simd::kQueryTile][kGroup];
#define LLMCTL_ROWS(count)                                                                             \
    case count:                                                                                        \
        if constexpr (count <= Simd::kQueryTile)                                                       \
            quantized_group<Stored, count>(w, w_scales, codes, scales, offsets, x.blocks, results);    \
        break;
        switch (rows) {
            LLMCTL_ROWS(1)
            LLMCTL_ROWS(2)
            LLMCTL_ROWS(3)
            LLMCTL_ROWS(4)
            LLMCTL_ROWS(5)
            LLMCTL_ROWS(6)
            LLMCTL_ROWS(7)
            LLMCTL_ROWS(8)
        }
#undef LLMCTL_ROWS
        for (Size t = 0; t < rows; ++t) {
            store_results(results[t], bias, advanced(job.y, job.y_dtype, (first + t) * job.n + n), job.y_dtype, count);
        }
    }
}

// The nibbles of a group as bytes, in the order in which blocks of 8 bits are stored.
inline void unpack_nibbles(const uint8_t* w, Size blocks, const int8_t* code, uint8_t* to) {
    constexpr int kWidth = 4 * Simd::kLanes;
    const auto table = Simd::code(code, Simd::kUnsigned ? 0x80 : 0);
    for (Size b = 0; b < blocks; ++b, w += 256, to += 512) {
        for (int at = 0; at < 256; at += kWidth) {
            const auto raw = Simd::bytes(w + at);
            Simd::store_bytes(to + at, Simd::low(raw, table));
            Simd::store_bytes(to + at + 256, Simd::high(raw, table));
        }
    }
}

template <class Encoding>
inline void nibble_rows(const llmctl::QuantizedLinear& job, Size group, uint8_t* scratch) {
    const uint8_t* w = job.weight + group * job.x.blocks * 256;
    if (job.x.rows <= job.x.tile) {
        quantized_rows<Nibbles<Encoding>>(job, w, group);
    } else {
        unpack_nibbles(w, job.x.blocks, Encoding::code(), scratch);
        quantized_rows<Unpacked<Encoding>>(job, scratch, group);
    }
}

inline void linear_quantized(const llmctl::QuantizedLinear& job, Size group_begin, Size group_end, uint8_t* scratch) {
    for (Size group = group_begin; group < group_end; ++group) {
        if (job.bits == 8) {
            quantized_rows<Bytes<LlmctlEncoding>>(job, job.weight + group * job.x.blocks * 512, group);
        } else if (job.encoding == llmctl::kMxfp4) {
            nibble_rows<Mxfp4Encoding>(job, group, scratch);
        } else {
            nibble_rows<LlmctlEncoding>(job, group, scratch);
        }
    }
}

}  // namespace
