// The operations between matrix products, one row at a time. Each rounds where torch's would, so that a program and the
// modules of its model give the same bits.
#pragma once

#include "attention.h"

namespace {

using llmctl::Operation;

// Round numbers to the precision of `dtype`.
inline void round_to(int dtype, float* values, Size count) {
    if (dtype == llmctl::kBF16) {
        for (Size i = 0; i < count; ++i) values[i] = from_bf16(to_bf16(values[i]));
    } else if (dtype == llmctl::kF16) {
        for (Size i = 0; i < count; ++i) values[i] = from_f16(to_f16(values[i]));
    }
}

inline void subtract_mean(float* x, Size width) {
    Simd::F sums = Simd::zero();
    Size i = 0;
    for (; i + Simd::kLanes <= width; i += Simd::kLanes) sums = Simd::add(sums, Simd::load(x + i));
    float sum = Simd::total(sums);
    for (; i < width; ++i) sum += x[i];
    const float mean = sum / static_cast<float>(width);
    for (i = 0; i < width; ++i) x[i] -= mean;
}

inline float sum_of_squares(const float* x, Size width) {
    Simd::F squares = Simd::zero();
    Size i = 0;
    for (; i + Simd::kLanes <= width; i += Simd::kLanes) squares = Simd::fma(Simd::load(x + i), Simd::load(x + i), squares);
    float sum = Simd::total(squares);
    for (; i < width; ++i) sum += x[i] * x[i];
    return sum;
}

// x / sqrt(mean(x^2) + eps) times the weights, in place; `work` holds `width` numbers. A layer norm subtracts the mean first.
inline void rms_norm(float* x, Size width, int dtype, const Operation& op, float* work) {
    if (op.norm_flavour == llmctl::kLayerNorm) subtract_mean(x, width);
    const float factor = 1.0f / square_root(sum_of_squares(x, width) / static_cast<float>(width) + op.epsilon);
    for (Size i = 0; i < width; ++i) x[i] *= factor;
    if (op.norm_flavour == llmctl::kNoWeight) return round_to(dtype, x, width);
    convert_to_f32(op.weight, static_cast<int>(op.weight_dtype), work, width);
    if (op.norm_flavour == llmctl::kNormThenWeight) {
        round_to(dtype, x, width);
    } else if (op.norm_flavour == llmctl::kOnePlusWeight) {
        for (Size i = 0; i < width; ++i) work[i] += 1.0f;
    }
    for (Size i = 0; i < width; ++i) x[i] *= work[i];
    if (op.norm_flavour == llmctl::kLayerNorm && op.bias) {
        convert_to_f32(op.bias, static_cast<int>(op.bias_dtype), work, width);
        for (Size i = 0; i < width; ++i) x[i] += work[i];
    }
    round_to(dtype, x, width);
}

inline void rms_norm_row(const Operation& op, int dtype, const void* in, void* out, float* work) {
    convert_to_f32(in, dtype, work, op.n);
    rms_norm(work, op.n, dtype, op, work + op.n);
    convert_from_f32(work, out, dtype, op.n);
}

// RoPE (Su et al. 2021) of one head, in place.
inline void rotate(const Operation& op, int dtype, float* head, float* rotated, const float* cosine, const float* sine) {
    const Size rotary = op.rotary_size, half = rotary / 2;
    for (Size i = 0; i < half; ++i) {
        const Size first = op.rope_layout == llmctl::kHalves ? i : 2 * i;
        const Size second = op.rope_layout == llmctl::kHalves ? half + i : 2 * i + 1;
        rotated[first] = -head[second] * sine[first];
        rotated[second] = head[first] * sine[second];
    }
    for (Size i = 0; i < rotary; ++i) head[i] *= cosine[i];
    if (!op.rope_in_float32) {
        round_to(dtype, rotated, rotary);
        round_to(dtype, head, rotary);
    }
    for (Size i = 0; i < rotary; ++i) head[i] += rotated[i];
}

// The heads of one token: a norm if the operation has one, RoPE if there is a table, and a factor.
inline void prepare_heads_row(const Operation& op, int dtype, const void* in, const float* rope_cos, const float* rope_sin,
                              float factor, void* out, float* work) {
    const Size size = op.head_size, rotary = rope_cos ? op.rotary_size : 0;
    const bool is_normed = op.weight || op.norm_flavour == llmctl::kNoWeight;
    float *head = work, *rotated = work + size, *cosine = rotated + size, *sine = cosine + rotary;
    for (Size i = 0; i < rotary; ++i) {
        const Size entry = op.rope_layout == llmctl::kPairsOfHalves ? i / 2 : i;
        cosine[i] = rope_cos[entry];
        sine[i] = rope_sin[entry];
    }
    for (Size h = 0; h < op.heads; ++h) {
        convert_to_f32(advanced(in, dtype, h * op.head_stride), dtype, head, size);
        if (is_normed && !op.norm_last) rms_norm(head, size, dtype, op, rotated);
        if (rotary) rotate(op, dtype, head, rotated, cosine, sine);
        if (is_normed && op.norm_last) {
            round_to(dtype, head, size);
            rms_norm(head, size, dtype, op, rotated);
        }
        if (op.token_factor) {
            round_to(dtype, head, size);
            for (Size i = 0; i < size; ++i) head[i] *= factor;
        }
        convert_from_f32(head, advanced(out, dtype, h * op.output_head_stride), dtype, size);
    }
}

// 1 / (1 + exp(-x))
inline Simd::F sigmoid(Simd::F x) {
    const Simd::F zero = Simd::zero(), one = Simd::set(1.0f);
    const Simd::F e = exponential(Simd::where_less(x, zero, x, Simd::sub(zero, x)));
    return Simd::div(Simd::where_less(x, zero, e, one), Simd::add(one, e));
}

// GELU: x times the normal distribution function, by the complementary error function (Abramowitz and Stegun, 7.1.26, with an
// absolute error below 2e-7).
inline Simd::F gelu(Simd::F x) {
    const Simd::F zero = Simd::zero(), one = Simd::set(1.0f), size = Simd::max(x, Simd::sub(zero, x));
    const Simd::F t = Simd::div(one, Simd::fma(Simd::set(0.3275911f * 0.70710678f), size, one));
    Simd::F p = Simd::set(1.061405429f);
    p = Simd::fma(p, t, Simd::set(-1.453152027f));
    p = Simd::fma(p, t, Simd::set(1.421413741f));
    p = Simd::fma(p, t, Simd::set(-0.284496736f));
    p = Simd::fma(p, t, Simd::set(0.254829592f));
    const Simd::F square = Simd::mul(x, x);
    const Simd::F tail = Simd::mul(Simd::mul(Simd::mul(p, t), Simd::set(0.5f)), exponential(Simd::mul(square, Simd::set(-0.5f))));
    return Simd::mul(x, Simd::where_less(x, zero, tail, Simd::sub(one, tail)));
}

// xIELU (Huang 2024, arXiv:2411.13010): alpha x^2 + slope x, or negative_alpha (exp(x) - 1 - x) + slope x below zero.
inline Simd::F xielu(const Operation& op, Simd::F x) {
    const Simd::F zero = Simd::zero(), low = Simd::where_less(x, zero, x, zero), line = Simd::mul(x, Simd::set(op.slope));
    const Simd::F far = Simd::sub(Simd::sub(exponential(low), Simd::set(1.0f)), low);
    const float factors[] = {1.0f / 5040.0f, 1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f};
    Simd::F series = Simd::set(1.0f / 40320.0f);  // of exp(x) - 1 - x, which would lose digits near zero
    for (const float factor : factors) {
        series = Simd::fma(series, low, Simd::set(factor));
    }
    const Simd::F near = Simd::mul(Simd::mul(series, low), low);
    const Simd::F bent = Simd::mul(Simd::set(op.negative_alpha), Simd::where_less(low, Simd::set(-0.5f), far, near));
    const Simd::F grown = Simd::mul(Simd::mul(Simd::set(op.alpha), x), x);
    return Simd::add(Simd::where_less(zero, x, grown, bent), line);
}

inline Simd::F activate(Size activation, Simd::F x) {
    if (activation == llmctl::kSilu) return Simd::mul(x, sigmoid(x));
    if (activation == llmctl::kSigmoid) return sigmoid(x);
    if (activation == llmctl::kIdentity) return x;
    if (activation == llmctl::kReluSquared) return Simd::mul(Simd::max(x, Simd::zero()), x);
    if (activation == llmctl::kGelu) return gelu(x);
    // GELU by tanh: 0.5 (1 + tanh(z)) is the sigmoid of 2 z, z = sqrt(2 / pi) (x + 0.044715 x^3)
    const Simd::F cube = Simd::mul(Simd::mul(x, x), x);
    const Simd::F z = Simd::mul(Simd::set(1.5957691216057308f), Simd::fma(Simd::set(0.044715f), cube, x));
    return Simd::mul(x, sigmoid(z));
}

// gpt-oss's activation: both are clamped, then gate becomes gate * sigmoid(alpha * gate), and up becomes up + 1.
inline void clamped_swiglu(const Operation& op, float* gate, float* up, Size count) {
    const Simd::F most = Simd::set(op.limit), least = Simd::set(-op.limit), alpha = Simd::set(op.alpha), one = Simd::set(1.0f);
    for (Size i = 0; i < count; i += Simd::kLanes) {
        Simd::F g = Simd::load(gate + i), u = Simd::load(up + i);
        g = Simd::where_less(most, g, most, g);
        u = Simd::where_less(most, u, most, Simd::where_less(u, least, least, u));
        Simd::store(gate + i, Simd::mul(g, sigmoid(Simd::mul(g, alpha))));
        Simd::store(up + i, Simd::add(u, one));
    }
}

// activation(gate) times up. gate and up may alternate, or each of op.k gates may be for an equal part of the row.
inline void gated_activation_row(const Operation& op, int dtype, const void* gate, const void* up, void* out, float* work) {
    constexpr Size kStep = 16 * Simd::kLanes;
    const Size part = op.k > 0 ? op.n / op.k : 1;  // elements with the same gate
    for (Size at = 0; at < op.n; at += kStep) {
        const Size count = op.n - at < kStep ? op.n - at : kStep, whole = llmctl::ceil_div(count, Simd::kLanes) * Simd::kLanes;
        float *g = work, *u = work + kStep;
        for (Size i = count; i < whole; ++i) g[i] = u[i] = 0.0f;
        if (op.interleaved) {
            float* both = u + kStep;
            convert_to_f32(advanced(gate, dtype, 2 * at), dtype, both, 2 * count);
            for (Size i = 0; i < count; ++i) {
                g[i] = both[2 * i];
                u[i] = both[2 * i + 1];
            }
        } else {
            if (op.k == 0) {
                convert_to_f32(advanced(gate, dtype, at), dtype, g, count);
            } else {
                for (Size i = 0; i < count; ++i) {
                    if (i > 0 && (at + i) % part) {
                        g[i] = g[i - 1];
                    } else {
                        convert_to_f32(advanced(gate, dtype, (at + i) / part), dtype, g + i, 1);
                    }
                }
            }
            convert_to_f32(advanced(up, dtype, at), dtype, u, count);
        }
        if (op.activation == llmctl::kClampedSwiglu) {
            clamped_swiglu(op, g, u, whole);
            round_to(dtype, u, count);
        } else {
            for (Size i = 0; i < whole; i += Simd::kLanes) Simd::store(g + i, activate(op.activation, Simd::load(g + i)));
        }
        round_to(dtype, g, count);
        for (Size i = 0; i < count; ++i) g[i] *= u[i];
        convert_from_f32(g, advanced(out, dtype, at), dtype, count);
    }
}

// activation(x)
inline void activation_row(const Operation& op, int dtype, const void* in, void* out, float* work) {
    constexpr Size kStep = 16 * Simd::kLanes;
    for (Size at = 0; at < op.n; at += kStep) {
        const Size count = op.n - at < kStep ? op.n - at : kStep, whole = llmctl::ceil_div(count, Simd::kLanes) * Simd::kLanes;
        convert_to_f32(advanced(in, dtype, at), dtype, work, count);
        for (Size i = count; i < whole; ++i) work[i] = 0.0f;
        for (Size i = 0; i < whole; i += Simd::kLanes) {
            const Simd::F x = Simd::load(work + i);
            Simd::store(work + i, op.activation == llmctl::kXielu ? xielu(op, x) : activate(op.activation, x));
        }
        convert_from_f32(work, advanced(out, dtype, at), dtype, count);
    }
}

// a plus scale times b, rounded after the product and after the sum.
inline void add_row(const Operation& op, int dtype, const void* a, const void* b, void* out, float* work) {
    float *sum = work, *addend = work + op.n;
    convert_to_f32(a, dtype, sum, op.n);
    convert_to_f32(b, dtype, addend, op.n);
    if (op.scale != 1.0f) {
        for (Size i = 0; i < op.n; ++i) addend[i] *= op.scale;
        round_to(dtype, addend, op.n);
    }
    for (Size i = 0; i < op.n; ++i) sum[i] += addend[i];
    convert_from_f32(sum, out, dtype, op.n);
}

// x times a constant.
inline void scale_row(const Operation& op, int dtype, const void* in, void* out, float* work) {
    convert_to_f32(in, dtype, work, op.n);
    for (Size i = 0; i < op.n; ++i) work[i] *= op.scale;
    convert_from_f32(work, out, dtype, op.n);
}

// One row of an embedding, which is quantised if `op.bits` is not 0.
inline void embedding_row(const Operation& op, int dtype, Size id, void* out, float* work) {
    if (op.bits == 0) {
        convert_to_f32(advanced(op.weight, static_cast<int>(op.weight_dtype), id * op.n), static_cast<int>(op.weight_dtype),
                       work, op.n);
    } else {
        const Size blocks = llmctl::ceil_div(op.n, llmctl::kBlock), first = id / llmctl::kGroup * blocks;
        const Size row = id % llmctl::kGroup, bytes = op.bits == 4 ? 256 : 512;
        for (Size b = 0; b < blocks; ++b) {
            const uint8_t* codes = static_cast<const uint8_t*>(op.weight) + (first + b) * bytes + row * 4;
            const float scale = from_f16(static_cast<const uint16_t*>(op.scales)[(first + b) * llmctl::kGroup + row]);
            const Size count = op.n - b * llmctl::kBlock < llmctl::kBlock ? op.n - b * llmctl::kBlock : llmctl::kBlock;
            for (Size i = 0; i < count; ++i) {
                const Size quad = i / 4;
                int code;
                if (op.bits == 8) {
                    code = codes[quad * 64 + i % 4] - 128;
                } else {
                    const int pair = codes[quad % 4 * 64 + i % 4];
                    code = llmctl::kCode4[quad < 4 ? pair & 15 : pair >> 4];
                }
                work[b * llmctl::kBlock + i] = scale * static_cast<float>(code);
            }
        }
    }
    round_to(dtype, work, op.n);
    if (op.scale != 1.0f) {
        for (Size i = 0; i < op.n; ++i) work[i] *= op.scale;
    }
    convert_from_f32(work, out, dtype, op.n);
}

}  // namespace
