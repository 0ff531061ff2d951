// Weights to codes. Done once, when a model is loaded: sixteen rows side by side, a scale per row and block of 32.
//
// The 4-bit code has sixteen points that are not evenly spaced: trained weights of a block are nearly normal, so most of
// them lie near zero. The points were found by alternating between the best scale of each block and the best points for
// these scales (Lloyd 1982, "Least squares quantization in PCM", with the scale as a second unknown) on normal numbers.
#pragma once

#include "kernels.h"

namespace {

struct WeightBlock {
    alignas(64) float values[llmctl::kBlock][llmctl::kGroup];  // [input][row]
};

inline void load_weight_block(const llmctl::WeightToQuantize& job, Size group, Size block, WeightBlock& to) {
    const Size k = block * kBlock, count = job.k - k < kBlock ? job.k - k : kBlock;
    for (Size r = 0; r < kGroup; ++r) {
        alignas(64) float row[kBlock] = {};
        const Size n = group * kGroup + r;
        if (n < job.n) convert_to_f32(advanced(job.w, job.dtype, n * job.k + k), job.dtype, row, count);
        for (Size i = 0; i < kBlock; ++i) to.values[i][r] = row[i];
    }
}

// The largest magnitude of each row of the block, and the number that has it.
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

// Scales are stored in float16: what is stored is what the codes are chosen for.
inline float stored_scale(float scale) {
    const float limited = scale > 65504.0f ? 65504.0f : (scale < -65504.0f ? -65504.0f : scale);
    return from_f16(to_f16(limited));
}

inline void inverse_scales(const float* scale, float* inverse) {
    for (Size r = 0; r < kGroup; ++r) inverse[r] = scale[r] != 0.0f ? 1.0f / scale[r] : 0.0f;
}

struct Code4 {
    float point[16], gap[16], middle[16];
    Code4() {
        for (int i = 0; i < 16; ++i) point[i] = llmctl::kCode4[i];
        for (int i = 1; i < 16; ++i) {
            gap[i] = point[i] - point[i - 1];
            middle[i] = 0.5f * (point[i] + point[i - 1]);
        }
    }
};

// How well the code fits each row at a scale: the two sums from which follow the error and the best scale of its codes.
inline void fit_code(const WeightBlock& block, const Code4& code, const float* inverse, float* xc, float* cc) {
    for (Size r = 0; r < kGroup; ++r) xc[r] = cc[r] = 0.0f;
    for (Size i = 0; i < kBlock; ++i) {
        float scaled[kGroup], nearest[kGroup];
        for (Size r = 0; r < kGroup; ++r) {
            scaled[r] = block.values[i][r] * inverse[r];
            nearest[r] = code.point[0];
        }
        for (int j = 1; j < 16; ++j) {
            for (Size r = 0; r < kGroup; ++r) nearest[r] += scaled[r] > code.middle[j] ? code.gap[j] : 0.0f;
        }
        for (Size r = 0; r < kGroup; ++r) {
            xc[r] += block.values[i][r] * nearest[r];
            cc[r] += nearest[r] * nearest[r];
        }
    }
}

inline void quantize_block4(const WeightBlock& block, const Code4& code, uint8_t* to, uint16_t* scales) {
    // The number of largest magnitude is put near either end of the code, closer or further than the end itself.
    static const float kEnds[] = {-145, -134, -127, -118, -108, 121, 113, 106, 98, 90};
    float peak[kGroup], number[kGroup], scale[kGroup], best[kGroup], inverse[kGroup], xc[kGroup], cc[kGroup];
    block_peaks(block, peak, number);
    for (Size r = 0; r < kGroup; ++r) scale[r] = best[r] = 0.0f;
    for (const float end : kEnds) {
        for (Size r = 0; r < kGroup; ++r) inverse[r] = peak[r] > 0.0f ? end / number[r] : 0.0f;
        fit_code(block, code, inverse, xc, cc);
        for (Size r = 0; r < kGroup; ++r) {
            const float gain = xc[r] * xc[r] / cc[r];  // by how much the squared error shrinks
            const bool better = gain > best[r];
            scale[r] = better ? xc[r] / cc[r] : scale[r];
            best[r] = better ? gain : best[r];
        }
    }
    for (Size r = 0; r < kGroup; ++r) {
        scales[r] = to_f16(stored_scale(scale[r]));
        scale[r] = from_f16(scales[r]);
    }
    inverse_scales(scale, inverse);
    for (Size i = 0; i < kBlock; ++i) {
        for (Size r = 0; r < kGroup; ++r) {
            const float scaled = block.values[i][r] * inverse[r];
            int index = 0;
            for (int j = 1; j < 16; ++j) index += scaled > code.middle[j] ? 1 : 0;
            const Size quad = i / 4, at = (quad % 4) * 64 + r * 4 + i % 4;
            to[at] = static_cast<uint8_t>(quad < 4 ? index : to[at] | index << 4);
        }
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
    for (Size i = 0; i < kBlock; ++i) {
        for (Size r = 0; r < kGroup; ++r) {
            float scaled = block.values[i][r] * inverse[r];
            scaled = scaled > 127.0f ? 127.0f : (scaled < -127.0f ? -127.0f : scaled);
            const int32_t code = static_cast<int32_t>(as_bits(scaled + 12582912.0f)) - 0x4b400000;
            to[i / 4 * 64 + r * 4 + i % 4] = static_cast<uint8_t>(code + 128);
        }
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
