// Operations that continue a state from token to token. Tokens are processed one after the other, so the results do not
// depend on how a prompt was split into passes. Each rounds where torch's would.
#pragma once

#include "rows.h"

namespace {

using llmctl::kConvChannels;
using llmctl::kRecurrentTokens;
using llmctl::Recurrence;

// Convert a row and fill it with zeros up to a whole number of vectors.
inline void widen(const void* from, int dtype, float* to, Size count) {
    convert_to_f32(from, dtype, to, count);
    for (Size i = count; i % Simd::kLanes != 0; ++i) to[i] = 0.0f;
}

// Channels begin..end of a convolution over the tokens: y[t] = activation(bias + sum of w[j] x[t - kernel_size + 1 + j]).
// Weights are [kernel_size][n], and the state holds the last kernel_size - 1 inputs [n]. Sums are rounded before the
// activation.
inline void causal_conv(const Operation& op, int dtype, const Recurrence& sequence, Size begin, Size end, float* work) {
    const Size width = end - begin, past = op.kernel_size - 1;
    const int weight_dtype = static_cast<int>(op.weight_dtype);
    float *weights = work, *bias = weights + op.kernel_size * kConvChannels, *rows = bias + kConvChannels;
    for (Size j = 0; j < op.kernel_size; ++j) {
        widen(advanced(op.weight, weight_dtype, j * op.n + begin), weight_dtype, weights + j * kConvChannels, width);
    }
    std::memset(bias, 0, kConvChannels * sizeof(float));
    if (op.bias) widen(advanced(op.bias, static_cast<int>(op.bias_dtype), begin), static_cast<int>(op.bias_dtype), bias, width);
    for (Size j = 0; j < past; ++j) {
        if (sequence.begins) {
            std::memset(rows + j * kConvChannels, 0, kConvChannels * sizeof(float));
        } else {
            widen(advanced(sequence.state, dtype, j * op.n + begin), dtype, rows + j * kConvChannels, width);
        }
    }
    for (Size first = 0; first < sequence.tokens; first += kRecurrentTokens) {
        const Size count = sequence.tokens - first < kRecurrentTokens ? sequence.tokens - first : kRecurrentTokens;
        for (Size t = 0; t < count; ++t) {
            const Size at = (first + t) * op.input_stride + begin;
            widen(advanced(sequence.input, dtype, at), dtype, rows + (past + t) * kConvChannels, width);
        }
        for (Size t = 0; t < count; ++t) {
            float* window = rows + t * kConvChannels;  // its first row is not needed after this token
            for (Size c = 0; c < width; c += Simd::kLanes) {
                Simd::F sum = Simd::load(bias + c);
                for (Size j = 0; j <= past; ++j) {
                    sum = Simd::fma(Simd::load(weights + j * kConvChannels + c), Simd::load(window + j * kConvChannels + c), sum);
                }
                Simd::store(window + c, sum);
            }
            if (op.activation != llmctl::kIdentity) {
                round_to(dtype, window, width);
                for (Size c = 0; c < width; c += Simd::kLanes) {
                    Simd::store(window + c, activate(op.activation, Simd::load(window + c)));
                }
            }
            convert_from_f32(window, advanced(sequence.output, dtype, (first + t) * op.n + begin), dtype, width);
        }
        std::memmove(rows, rows + count * kConvChannels, static_cast<size_t>(past * kConvChannels) * sizeof(float));
    }
    for (Size j = 0; j < past; ++j) {
        convert_from_f32(rows + j * kConvChannels, advanced(sequence.state, dtype, j * op.n + begin), dtype, width);
    }
}

}  // namespace
