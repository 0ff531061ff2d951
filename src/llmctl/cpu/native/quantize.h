// Quantisation of weights when a model is loaded: sixteen interleaved rows, one scale per row and block of 32.
//
// The sixteen points of the 4-bit code are not evenly spaced: the weights of a trained block are nearly normal, so most
// are near zero. The points were found by alternating between the best scale of each block and the best points for
// these scales (Lloyd 1982, "Least squares quantization in PCM", with the scale as a second unknown) on normal numbers.
#pragma once

#include "kernels.h"
#include "load.h"

namespace {

using llmctl::kBlock;
using llmctl::kGroup;

struct WeightBlock {
    alignas(64) float values[llmctl::kBlock][llmctl::kGroup];  // [input][row]
};

inline void load_weight_block(const llmctl::WeightToQuantize& job, Size group, Size block, WeightBlock& to) {
    constexpr Size kLanes = Simd::kLanes;
    const Size k = block * kBlock, n = group * kGroup;
    if (n + kGroup > job.n || k + kBlock > job.k) {  // at the edges, padded with zeros
        for (Size r = 0; r < kGroup; ++r) {
            alignas(64) float row[kBlock] = {};
            const Size count = job.k - k < kBlock ? job.k - k : kBlock;
            if (n + r < job.n) convert_to_f32(advanced(job.w, job.dtype, (n + r) * job.k + k), job.dtype, row, count);
            for (Size i = 0; i < kBlock; ++i) to.values[i][r] = row[i];
        }
        return;
    }
    for (Size r = 0; r < kGroup; r += kLanes) {
        for (Size i = 0; i < kBlock; i += kLanes) {
            Simd::F rows[kLanes];
            for (Size lane = 0; lane < kLanes; ++lane) {
                rows[lane] = load_any(job.w, job.dtype, (n + r + lane) * job.k + k + i);
            }
            Simd::transpose(rows);
            for (Size lane = 0; lane < kLanes; ++lane) Simd::store(&to.values[i + lane][r], rows[lane]);
        }
    }
}

// Find the largest magnitude in each row of the block, and the number with this magnitude.
inline void block_peaks(const WeightBlock& block, float* peak, float* number) {
    for (Size r = 0; r < kGroup; ++r) peak[r] = number[r] = 0.0f;
    for (Size i = 0; i < kBlock; ++i) {
        for (Size r = 0; r < kGroup; ++r) {
            const float v = block.values[i][r], size = v < 0 ? -v : v;
            number[r] = size > peak[r] ? v : number[r];
            peak[r] = size > peak[r] ? size : peak[r];
        }
    }
}

// Scales are stored in float16; codes are chosen for the stored scale.
inline float stored_scale(float scale) {
    const float limited = scale > 65504.0f ? 65504.0f : (scale < -65504.0f ? -65504.0f : scale);
    return from_f16(to_f16(limited));
}

inline void inverse_scales(const float* scale, float* inverse) {
    for (Size r = 0; r < kGroup; ++r) inverse[r] = scale[r] != 0.0f ? 1.0f / scale[r] : 0.0f;
}

struct Code4 {
    alignas(64) float point[16], middle[16];  // middle[i] lies between the points i - 1 and i
    Code4() {
        for (int i = 0; i < 16; ++i) point[i] = llmctl::kCode4[i];
        middle[0] = -as_float(0x7f800000u);
        for (int i = 1; i < 16; ++i) middle[i] = 0.5f * (point[i] + point[i - 1]);
    }
};

// The scale with the least error for each row. Candidates put the number of largest magnitude near one end of the code; each
// is then replaced by the best scale for the codes that it gives.
inline void best_scales(const WeightBlock& block, const Code4& code, const float* number, float* scale) {
    static const float kEnds[] = {-145, -134, -127, -118, -108, 121, 113, 106, 98, 90};
    const Simd::Nearest nearest(code.middle, code.point);
    for (Size r = 0; r < kGroup; r += Simd::kLanes) {
        const Simd::F one = Simd::set(1.0f), largest = Simd::load(number + r);
        const Simd::F inverse = Simd::div(one, Simd::where_less(Simd::mul(largest, largest), Simd::set(1e-30f), one, largest));
        Simd::F best = Simd::zero(), found = Simd::zero();
        for (const float end : kEnds) {
            const Simd::F to_code = Simd::mul(inverse, Simd::set(end));
            Simd::F xc = Simd::zero(), cc = Simd::zero();  // the sums from which follow the error and the best scale
            for (Size i = 0; i < kBlock; ++i) {
                const Simd::F x = Simd::load(&block.values[i][r]), point = nearest.point(Simd::mul(x, to_code));
                xc = Simd::fma(x, point, xc);
                cc = Simd::fma(point, point, cc);
            }
            const Simd::F fitted = Simd::div(xc, cc), gain = Simd::mul(xc, fitted);  // of squared error
            found = Simd::where_less(best, gain, fitted, found);
            best = Simd::where_less(best, gain, gain, best);
        }
        Simd::store(scale + r, found);
    }
}

inline void quantize_block4(const WeightBlock& block, const Code4& code, uint8_t* to, uint16_t* scales) {
    float peak[kGroup], number[kGroup], scale[kGroup], inverse[kGroup];
    block_peaks(block, peak, number);
    best_scales(block, code, number, scale);
    for (Size r = 0; r < kGroup; ++r) {
        scales[r] = to_f16(stored_scale(scale[r]));
        scale[r] = from_f16(scales[r]);
    }
    inverse_scales(scale, inverse);
    const Simd::Nearest nearest(code.middle, code.point);
    for (Size quad = 0; quad < 4; ++quad) {  // inputs 4 * quad.. in the low nibbles, those 16 further in the high ones
        float halves[2][kGroup];
        for (Size half = 0; half < 2; ++half) {
            const auto* values = &block.values[4 * quad + 2 * half];
            for (Size r = 0; r < kGroup; r += Simd::kLanes) {
                const Simd::F scale = Simd::load(inverse + r);
                const auto index = [&](Size i) { return nearest.index(Simd::mul(Simd::load(&values[i][r]), scale)); };
                const Simd::F one = Simd::fma(index(16), Simd::set(16.0f), index(0));
                const Simd::F other = Simd::fma(index(17), Simd::set(16.0f), index(1));
                Simd::store(&halves[half][r], Simd::fma(other, Simd::set(256.0f), one));
            }
        }
        uint32_t four[kGroup];
        for (Size r = 0; r < kGroup; ++r) {
            four[r] = static_cast<uint32_t>(static_cast<int32_t>(halves[0][r])) |
                      static_cast<uint32_t>(static_cast<int32_t>(halves[1][r])) << 16;
        }
        std::memcpy(to + 64 * quad, four, 64);
    }
}

inline void quantize_block8(const WeightBlock& block, uint8_t* to, uint16_t* scales) {
    float peak[kGroup], number[kGroup], scale[kGroup], inverse[kGroup];
    block_peaks(block, peak, number);
    for (Size r = 0; r < kGroup; ++r) {
        scales[r] = to_f16(stored_scale(peak[r] / 127.0f));
        scale[r] = from_f16(scales[r]);
    }
    inverse_scales(scale, inverse);
    for (Size quad = 0; quad < 8; ++quad) {
        uint32_t four[kGroup] = {};
        for (Size i = 0; i < 4; ++i) {
            for (Size r = 0; r < kGroup; ++r) {
                float scaled = block.values[4 * quad + i][r] * inverse[r];
                scaled = scaled > 127.0f ? 127.0f : scaled;
                scaled = scaled < -127.0f ? -127.0f : scaled;
                const uint32_t code = as_bits(scaled + 12582912.0f) - 0x4b400000u + 128u;
                four[r] |= (code & 0xffu) << (8 * i);
            }
        }
        std::memcpy(to + 64 * quad, four, 64);
    }
}

inline void quantize_weight(const llmctl::WeightToQuantize& job, Size group_begin, Size group_end) {
    const Size blocks = llmctl::ceil_div(job.k, kBlock), bytes = job.bits == 4 ? 256 : 512;
    const Code4 code;
    WeightBlock block;
    for (Size g = group_begin; g < group_end; ++g) {
        for (Size b = 0; b < blocks; ++b) {
            load_weight_block(job, g, b, block);
            uint8_t* to = job.weight + (g * blocks + b) * bytes;
            uint16_t* scales = job.scales + (g * blocks + b) * kGroup;
            if (job.bits == 4) {
                quantize_block4(block, code, to, scales);
            } else {
                quantize_block8(block, to, scales);
            }
        }
    }
}

}  // namespace
