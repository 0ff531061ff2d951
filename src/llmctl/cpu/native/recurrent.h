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

inline float scalar(Simd::F x) {
    float lanes[Simd::kLanes];
    Simd::store(lanes, x);
    return lanes[0];
}

// log(1 + exp(x))
inline float softplus(float x) {
    return static_cast<float>((x > 0 ? x : 0) + natural_log1p(natural_exp(x > 0 ? -static_cast<double>(x) : x)));
}

// Element `index` of a parameter with one number per head.
inline float per_head(const void* values, const Operation& op, Size index) {
    float value;
    convert_to_f32(advanced(values, static_cast<int>(op.head_dtype), index), static_cast<int>(op.head_dtype), &value, 1);
    return value;
}

// Some tokens of one head of a linear recurrence on a state S [rows][columns]: S = decay S + key (x) delta, out = query S.
// Vectors of `rows` numbers for each token: keys, queries; of `columns` numbers: values, out. S is stored in blocks of
// columns that are processed together, so that a block stays in the first-level cache from token to token.
struct HeadTokens {
    Size count, rows, columns;
    float *keys, *queries, *values, *out;
    float decay[kRecurrentTokens], beta[kRecurrentTokens];
};

constexpr int kStateVectors = Simd::kLanes == 8 ? 2 : 4;

// Process one block of columns, from `at`. With the delta rule, delta = beta (value - decay key S), otherwise delta is the value. The
// product of the next key and the new S is computed in the same pass over S.
template <int Vectors, bool DeltaRule>
inline void recur(const HeadTokens& tokens, float* state, Size at) {
    constexpr int kLanes = Simd::kLanes;
    constexpr Size kWidth = Vectors * kLanes;
    const Size rows = tokens.rows, columns = tokens.columns;
    float* block = state + at * rows;
    Simd::F recalled[Vectors], delta[Vectors], sums[Vectors];
    for (int v = 0; v < Vectors; ++v) recalled[v] = Simd::zero();
    if (DeltaRule) {
        for (Size i = 0; i < rows; ++i) {
            const Simd::F key = Simd::set(tokens.keys[i]);
            const float* row = block + i * kWidth;
            for (int v = 0; v < Vectors; ++v) recalled[v] = Simd::fma(key, Simd::load(row + v * kLanes), recalled[v]);
        }
    }
    for (Size t = 0; t < tokens.count; ++t) {
        const float *keys = tokens.keys + t * rows, *queries = tokens.queries + t * rows;
        const float* next = keys + (t + 1 < tokens.count ? rows : 0);
        const Simd::F decay = Simd::set(tokens.decay[t]), beta = Simd::set(tokens.beta[t]);
        for (int v = 0; v < Vectors; ++v) {
            delta[v] = Simd::load(tokens.values + t * columns + at + v * kLanes);
            if (DeltaRule) delta[v] = Simd::mul(beta, Simd::sub(delta[v], Simd::mul(decay, recalled[v])));
            recalled[v] = sums[v] = Simd::zero();
        }
        for (Size i = 0; i < rows; ++i) {
            float* row = block + i * kWidth;
            const Simd::F key = Simd::set(keys[i]), query = Simd::set(queries[i]), next_key = Simd::set(next[i]);
            for (int v = 0; v < Vectors; ++v) {
                const Simd::F s = Simd::fma(key, delta[v], Simd::mul(decay, Simd::load(row + v * kLanes)));
                Simd::store(row + v * kLanes, s);
                sums[v] = Simd::fma(query, s, sums[v]);
                if (DeltaRule) recalled[v] = Simd::fma(next_key, s, recalled[v]);
            }
        }
        for (int v = 0; v < Vectors; ++v) Simd::store(tokens.out + t * columns + at + v * kLanes, sums[v]);
    }
}

template <bool DeltaRule>
inline void recur_all(const HeadTokens& tokens, float* state) {
    Size at = 0;
    for (; at + kStateVectors * Simd::kLanes <= tokens.columns; at += kStateVectors * Simd::kLanes) {
        recur<kStateVectors, DeltaRule>(tokens, state, at);
    }
    for (; at < tokens.columns; at += Simd::kLanes) recur<1, DeltaRule>(tokens, state, at);
}

// The part of a state that belongs to one head, and room for the tokens processed together.
inline float* begin_head(const Operation& op, const Recurrence& sequence, Size head, float* work, HeadTokens& tokens) {
    tokens.rows = op.state_size, tokens.columns = llmctl::padded(op.head_size);
    tokens.keys = work;
    tokens.queries = tokens.keys + kRecurrentTokens * tokens.rows;
    tokens.values = tokens.queries + kRecurrentTokens * tokens.rows;
    tokens.out = tokens.values + kRecurrentTokens * tokens.columns;
    const Size size = tokens.rows * tokens.columns;
    float* state = static_cast<float*>(sequence.state) + head * size;
    if (sequence.begins) std::memset(state, 0, static_cast<size_t>(size) * sizeof(float));
    return state;
}

// x / sqrt(sum(x^2) + eps) times a factor, in place.
inline void l2_normalize(float* x, Size width, float factor) {
    const float inverse = 1.0f / square_root(sum_of_squares(x, width) + 1e-6f);
    for (Size i = 0; i < width; ++i) x[i] = x[i] * inverse * factor;
}

// The gated delta rule (Yang et al. 2024, "Gated Delta Networks") of one head, then its RMS norm times silu(gate).
// The input has the queries and keys of op.kv_heads heads, then the values; beta and the decay come from two more inputs.
inline void delta_rule(const Operation& op, int dtype, const Recurrence& sequence, Size head, float* work) {
    HeadTokens tokens;
    float* state = begin_head(op, sequence, head, work, tokens);
    float *row = tokens.out + kRecurrentTokens * tokens.columns, *gate = row + tokens.columns, *spare = gate + tokens.columns;
    const Size rows = tokens.rows, size = op.head_size, key_head = head / (op.heads / op.kv_heads) * rows;
    const float rate = -static_cast<float>(natural_exp(per_head(op.a_log, op, head)));
    const float bias = per_head(op.step_bias, op, head), scale = 1.0f / square_root(static_cast<float>(rows));
    for (Size first = 0; first < sequence.tokens; first += kRecurrentTokens) {
        tokens.count = sequence.tokens - first < kRecurrentTokens ? sequence.tokens - first : kRecurrentTokens;
        for (Size t = 0; t < tokens.count; ++t) {
            const void* in = advanced(sequence.input, dtype, (first + t) * op.input_stride);
            convert_to_f32(advanced(in, dtype, key_head), dtype, tokens.queries + t * rows, rows);
            convert_to_f32(advanced(in, dtype, op.kv_heads * rows + key_head), dtype, tokens.keys + t * rows, rows);
            load_row(in, dtype, 2 * op.kv_heads * rows + head * size, size, tokens.values + t * tokens.columns, tokens.columns);
            l2_normalize(tokens.queries + t * rows, rows, scale);
            l2_normalize(tokens.keys + t * rows, rows, 1.0f);
            float step, beta;
            convert_to_f32(advanced(sequence.step, dtype, (first + t) * op.step_stride + head), dtype, &step, 1);
            convert_to_f32(advanced(sequence.beta, dtype, (first + t) * op.beta_stride + head), dtype, &beta, 1);
            tokens.decay[t] = static_cast<float>(natural_exp(rate * softplus(step + bias)));
            tokens.beta[t] = scalar(sigmoid(Simd::set(beta)));
            round_to(dtype, tokens.beta + t, 1);
        }
        recur_all<true>(tokens, state);
        for (Size t = 0; t < tokens.count; ++t) {
            std::memcpy(row, tokens.out + t * tokens.columns, static_cast<size_t>(size) * sizeof(float));
            round_to(dtype, row, size);
            rms_norm(row, size, dtype, op, spare);
            load_row(sequence.other, dtype, (first + t) * op.other_stride + head * size, size, gate, tokens.columns);
            for (Size i = 0; i < size; i += Simd::kLanes) {
                Simd::store(gate + i, activate(llmctl::kSilu, Simd::load(gate + i)));
            }
            for (Size i = 0; i < size; ++i) row[i] *= gate[i];
            convert_from_f32(row, advanced(sequence.output, dtype, (first + t) * op.n + head * size), dtype, size);
        }
    }
}

// The selective scan of Mamba 2 (Dao and Gu 2024, "Transformers are SSMs") of one head. The input has the values x, then B
// and C of op.kv_heads groups. The output is float32, because the norm that follows rounds only its result.
inline void selective_scan(const Operation& op, int dtype, const Recurrence& sequence, Size head, float* work) {
    HeadTokens tokens;
    float* state = begin_head(op, sequence, head, work, tokens);
    float* x = tokens.out + kRecurrentTokens * tokens.columns;
    const Size rows = tokens.rows, size = op.head_size, group = head / (op.heads / op.kv_heads) * rows;
    const float rate = -static_cast<float>(natural_exp(per_head(op.a_log, op, head)));
    const float bias = per_head(op.step_bias, op, head), skip = per_head(op.skip, op, head);
    for (Size first = 0; first < sequence.tokens; first += kRecurrentTokens) {
        tokens.count = sequence.tokens - first < kRecurrentTokens ? sequence.tokens - first : kRecurrentTokens;
        for (Size t = 0; t < tokens.count; ++t) {
            const void* in = advanced(sequence.input, dtype, (first + t) * op.input_stride);
            load_row(in, dtype, head * size, size, x + t * tokens.columns, tokens.columns);
            convert_to_f32(advanced(in, dtype, op.heads * size + group), dtype, tokens.keys + t * rows, rows);
            convert_to_f32(advanced(in, dtype, op.heads * size + op.kv_heads * rows + group), dtype, tokens.queries + t * rows, rows);
            float step;
            convert_to_f32(advanced(sequence.step, dtype, (first + t) * op.step_stride + head), dtype, &step, 1);
            step += bias;
            round_to(dtype, &step, 1);
            step = softplus(step);
            round_to(dtype, &step, 1);
            step = step < op.step_low ? op.step_low : step > op.step_high ? op.step_high : step;
            tokens.decay[t] = static_cast<float>(natural_exp(step * rate));
            tokens.beta[t] = 0.0f;
            for (Size i = 0; i < tokens.columns; ++i) tokens.values[t * tokens.columns + i] = x[t * tokens.columns + i] * step;
        }
        recur_all<false>(tokens, state);
        for (Size t = 0; t < tokens.count; ++t) {
            float* out = static_cast<float*>(sequence.output) + (first + t) * op.heads * size + head * size;
            for (Size i = 0; i < size; ++i) out[i] = tokens.out[t * tokens.columns + i] + skip * x[t * tokens.columns + i];
        }
    }
}

// The RMS norm of each group of op.head_size elements of x silu(gate), times the weights. x is float32, and only the result
// is rounded.
inline void gated_norm_row(const Operation& op, int dtype, const void* x, const void* gate, void* out, float* work) {
    float *values = work, *other = values + op.n + Simd::kLanes;
    widen(x, llmctl::kF32, values, op.n);
    const auto multiply_by_gate = [&] {
        widen(gate, dtype, other, op.n);
        for (Size i = 0; i < op.n; i += Simd::kLanes) {
            Simd::store(values + i, Simd::mul(Simd::load(values + i), activate(llmctl::kSilu, Simd::load(other + i))));
        }
    };
    if (!op.gate_last) multiply_by_gate();
    for (Size first = 0; op.head_size > 0 && first < op.n; first += op.head_size) {
        const float mean = sum_of_squares(values + first, op.head_size) / static_cast<float>(op.head_size);
        const float factor = 1.0f / square_root(mean + op.epsilon);
        for (Size i = first; i < first + op.head_size; ++i) values[i] *= factor;
    }
    if (op.head_size > 0) {
        convert_to_f32(op.weight, static_cast<int>(op.weight_dtype), other, op.n);
        for (Size i = 0; i < op.n; ++i) values[i] *= other[i];
    }
    if (op.gate_last) multiply_by_gate();
    convert_from_f32(values, out, dtype, op.n);
}

}  // namespace
