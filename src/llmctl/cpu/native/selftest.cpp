// The self-test: every function on every instruction set that can run here, against sums in double, in memory of the exact
// size. For sanitizers (make kernels-sanitize) and for processors without Python, emulated ones too. Not installed.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "convert.h"
#include "kernels.h"
#include "program.h"

extern "C" {
const char* llmctl_select(const char*);
const char* llmctl_usable(int);
void llmctl_linear_quantized(int, int, const void*, int, Size, Size, const void*, const void*, Size, const void*, int, void*,
                             int, int);
void llmctl_pack_mxfp4(const void*, const void*, Size, Size, void*, void*, int);
void llmctl_linear(const void*, int, Size, Size, const void*, int, Size, const void*, int, void*, int, int);
void llmctl_quantize(int, const void*, int, Size, Size, void*, void*, int);
void llmctl_attention(const void*, int, const void*, const void*, int, void*, const int32_t*, const int32_t*,
                      const int32_t*, const Size*, float, float, const float*, int);
void llmctl_activation(const llmctl::Operation*, const void*, int, Size, void*, int);
void llmctl_run_program(const llmctl::Operation*, Size, const llmctl::Pass*);
}

namespace {

std::mt19937 random_numbers(1);
int failures = 0;

// Numbers of one of the types, in memory of exactly their size.
struct Numbers {
    int dtype;
    Size count;
    std::unique_ptr<char[]> memory;
    Numbers(int of, Size n) : dtype(of), count(n), memory(new char[n * (of == 0 ? 4 : 2)]) {
        std::normal_distribution<float> normal;
        for (Size i = 0; i < n; ++i) {
            const float value = normal(random_numbers);
            convert_from_f32(&value, advanced(memory.get(), dtype, i), dtype, 1);
        }
    }
    double operator[](Size i) const {
        float value;
        convert_to_f32(advanced(static_cast<const void*>(memory.get()), dtype, i), dtype, &value, 1);
        return value;
    }
    void* data() { return memory.get(); }
};

void expect(bool holds, const char* isa, const char* what, Size n, Size k, Size rows) {
    if (holds) return;
    ++failures;
    std::printf("%s: %s fails for n=%d k=%d rows=%d\n", isa, what, int(n), int(k), int(rows));
}

double error(const Numbers& y, const std::vector<double>& expected) {
    double off = 0, size = 1e-30;
    for (Size i = 0; i < y.count; ++i) {
        off += (y[i] - expected[i]) * (y[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return std::sqrt(off / size);
}

double weight_at(int bits, const uint8_t* codes, const uint16_t* scales, Size blocks, Size n, Size k) {
    const Size place = n / 16 * blocks + k / 32, quad = k % 32 / 4, row = n % 16;
    const double scale = from_f16(scales[place * 16 + row]);
    if (bits == 8) return scale * (codes[place * 512 + quad * 64 + row * 4 + k % 4] - 128);
    const int pair = codes[place * 256 + quad % 4 * 64 + row * 4 + k % 4];
    return scale * llmctl::kCode4[quad < 4 ? pair & 15 : pair >> 4];
}

// A weight [n][k] as MXFP4 checkpoints store it, and packed for the kernels in `codes` and `scales`.
struct Mxfp4Weight {
    std::vector<uint8_t> pairs, exponents;
    Size blocks;
    Mxfp4Weight(Size n, Size k, uint8_t* codes, uint8_t* scales) : blocks(llmctl::ceil_div(k, 32)) {
        pairs.resize(n * blocks * 16), exponents.resize(n * blocks);
        for (uint8_t& one : pairs) one = uint8_t(random_numbers());
        for (uint8_t& one : exponents) one = uint8_t(120 + random_numbers() % 8);
        exponents[0] = 0;  // 2^-127
        llmctl_pack_mxfp4(pairs.data(), exponents.data(), n, blocks, codes, scales, 2);
    }
    double at(Size n, Size k) const {
        const Size place = n * blocks + k / 32;
        const int pair = pairs[place * 16 + k % 32 / 2], code = k % 2 ? pair >> 4 : pair & 15;
        return std::ldexp(llmctl::kCodeE2M1[code], exponents[place] - 128);
    }
};

void try_linear(const char* isa, Size n, Size k, Size rows, int dtype) {
    Numbers x(dtype, rows * k), w(dtype, n * k), bias(dtype, n), y(0, rows * n), alone(0, n);
    std::vector<double> expected(rows * n);
    const auto expect_sums = [&](auto weight) {
        for (Size t = 0; t < rows; ++t)
            for (Size i = 0; i < n; ++i) {
                double sum = bias[i];
                for (Size j = 0; j < k; ++j) sum += x[t * k + j] * weight(i, j);
                expected[t * n + i] = sum;
            }
    };
    const auto same_alone = [&] { return std::memcmp(alone.data(), advanced(y.data(), 0, (rows - 1) * n), n * 4) == 0; };
    llmctl_linear(x.data(), dtype, rows, k, w.data(), dtype, n, bias.data(), dtype, y.data(), 0, 2);
    expect_sums([&](Size i, Size j) { return w[i * k + j]; });
    expect(error(y, expected) < 1e-5, isa, "linear", n, k, rows);
    const void* last = advanced(static_cast<const void*>(x.data()), dtype, (rows - 1) * k);
    llmctl_linear(last, dtype, 1, k, w.data(), dtype, n, bias.data(), dtype, alone.data(), 0, 1);
    expect(same_alone(), isa, "linear alone", n, k, rows);
    for (const int bits : {4, 8}) {
        const Size blocks = llmctl::ceil_div(k, 32), places = llmctl::ceil_div(n, 16) * blocks;
        std::unique_ptr<uint8_t[]> codes(new uint8_t[places * 64 * bits]);
        std::unique_ptr<uint16_t[]> scales(new uint16_t[places * 16]);
        llmctl_quantize(bits, w.data(), dtype, n, k, codes.get(), scales.get(), 2);
        llmctl_linear_quantized(bits, 0, x.data(), dtype, rows, k, codes.get(), scales.get(), n, bias.data(), dtype, y.data(),
                                0, 2);
        expect_sums([&](Size i, Size j) { return weight_at(bits, codes.get(), scales.get(), blocks, i, j); });
        expect(error(y, expected) < 0.02, isa, "quantised", n, k, rows);  // x is rounded to 8 bits
        llmctl_linear_quantized(bits, 0, last, dtype, 1, k, codes.get(), scales.get(), n, bias.data(), dtype, alone.data(), 0,
                                1);
        expect(same_alone(), isa, "quantised alone", n, k, rows);
    }
    std::unique_ptr<uint8_t[]> codes(new uint8_t[llmctl::code_bytes(n, k, 4)]);
    std::unique_ptr<uint8_t[]> scales(new uint8_t[llmctl::scale_bytes(n, k, llmctl::kMxfp4)]);
    const Mxfp4Weight weight(n, k, codes.get(), scales.get());
    llmctl_linear_quantized(4, llmctl::kMxfp4, x.data(), dtype, rows, k, codes.get(), scales.get(), n, bias.data(), dtype,
                            y.data(), 0, 2);
    expect_sums([&](Size i, Size j) { return weight.at(i, j); });
    expect(error(y, expected) < 0.02, isa, "MXFP4", n, k, rows);
    llmctl_linear_quantized(4, llmctl::kMxfp4, last, dtype, 1, k, codes.get(), scales.get(), n, bias.data(), dtype,
                            alone.data(), 0, 1);
    expect(same_alone(), isa, "MXFP4 alone", n, k, rows);
}

void try_attention(const char* isa, Size length, Size queries, Size width, Size window, Size chunk, const float* sinks, int dtype) {
    const Size heads = 4, kv_heads = 2, block_size = 16, blocks = llmctl::ceil_div(length, block_size);
    Numbers q(dtype, queries * heads * width), k(dtype, blocks * block_size * kv_heads * width),
        v(dtype, blocks * block_size * kv_heads * width), out(dtype, queries * heads * width);
    std::vector<int32_t> table(blocks);
    for (Size i = 0; i < blocks; ++i) table[i] = int32_t(blocks - 1 - i);
    const int32_t starts[] = {0, int32_t(queries)}, lengths[] = {int32_t(length)};
    const Size block = block_size * kv_heads * width, slot = kv_heads * width;
    const Size sizes[] = {1, blocks, block_size, heads, kv_heads, width, width, block, slot, width, block, slot, width, window, chunk};
    llmctl_attention(q.data(), dtype, k.data(), v.data(), dtype, out.data(), table.data(), starts, lengths, sizes, 0.2f, 0.0f,
                     sinks, 2);
    std::vector<double> expected(queries * heads * width);
    for (Size t = 0; t < queries; ++t)
        for (Size h = 0; h < heads; ++h) {
            const Size at = length - queries + t;
            const auto place = [&](Size p) { return table[p / 16] * block + p % 16 * slot + h / 2 * width; };
            double sum = sinks ? std::exp(sinks[h]) : 0;
            const Size first = chunk ? at / chunk * chunk : window && at - window + 1 > 0 ? at - window + 1 : 0;
            for (Size p = first; p <= at; ++p) {
                double score = 0;
                for (Size d = 0; d < width; ++d) score += q[(t * heads + h) * width + d] * k[place(p) + d];
                sum += std::exp(score * 0.2);
                for (Size d = 0; d < width; ++d) {
                    expected[(t * heads + h) * width + d] += std::exp(score * 0.2) * v[place(p) + d];
                }
            }
            for (Size d = 0; d < width; ++d) expected[(t * heads + h) * width + d] /= sum;
        }
    expect(error(out, expected) < (dtype == 0 ? 1e-5 : 4e-3), isa, "attention", length, width, queries);
}

void try_activation(const char* isa, Size width, int dtype) {
    const Size rows = 3;
    Numbers x(dtype, rows * width), y(dtype, rows * width);
    std::vector<double> expected(rows * width);
    llmctl::Operation op{};
    op.n = width, op.alpha = 0.9f, op.negative_alpha = 1.2f, op.slope = 0.5f;
    for (const llmctl::Activation kind : {llmctl::kGelu, llmctl::kXielu, llmctl::kReluSquared}) {
        op.activation = kind;
        for (Size i = 0; i < rows * width; ++i) {
            const double v = x[i];
            expected[i] = kind == llmctl::kGelu    ? 0.5 * v * std::erfc(-v / std::sqrt(2.0))
                          : kind == llmctl::kXielu ? 0.5 * v + (v > 0 ? 0.9 * v * v : 1.2 * (std::expm1(v) - v))
                          : v > 0                  ? v * v
                                                   : 0;
        }
        llmctl_activation(&op, x.data(), dtype, rows, y.data(), 2);
        expect(error(y, expected) < (dtype == 0 ? 1e-6 : 4e-3), isa, "activation", width, kind, rows);
    }
}

// A weight [n][k] in `bits`, or as torch stores it for 0, in memory of exactly its size.
struct Matrix {
    Numbers plain;
    std::vector<uint8_t> codes;
    std::vector<uint16_t> scales;
    Size n, k, bits;
    Matrix(int dtype, Size rows, Size columns, Size in) : plain(dtype, rows * columns), n(rows), k(columns), bits(in) {
        if (bits == 0) return;
        const Size places = llmctl::ceil_div(n, 16) * llmctl::ceil_div(k, 32);
        codes.resize(places * 64 * bits);
        scales.resize(places * 16);
        llmctl_quantize(int(bits), plain.data(), dtype, n, k, codes.data(), scales.data(), 2);
    }
    llmctl::Operation op(Size kind, Size in, Size out, Size same_input = 0) {
        llmctl::Operation found{};
        found.kind = kind, found.input = in, found.input_stride = k, found.output = out, found.n = n, found.k = k;
        found.bits = bits, found.same_input = same_input, found.scale = 1.0f, found.weight_dtype = plain.dtype;
        found.weight = bits ? static_cast<void*>(codes.data()) : plain.data();
        found.scales = scales.data();
        return found;
    }
};

// A model of one layer: sequences that are packed and cut into two passes give the logits of each one alone in one pass.
void try_program(const char* isa, int dtype, Size bits, Size encoding = 0) {
    using namespace llmctl;
    const Size hidden = 40, heads = 4, kv_heads = 2, width = 6, rotary = 4, inner = 36, words = 21, pages = 8, page = 4;
    enum { kX, kNormed, kQ, kK, kV, kQuery, kAttended, kSublayerOutput, kGate, kUp, kInner, kLast, kEnd, kRouter, kRoutes,
           kWide, kScanned };
    const Size widths[] = {hidden, hidden, heads * width, kv_heads * width, kv_heads * width, heads * width, heads * width,
                           hidden, inner, inner, inner, hidden, hidden, 3, 8, 64, 2 * hidden};
    const Size experts = 3, top_k = 2;  // an MoE layer with biases, whose gate and up alternate
    const auto packed = [&](Size n, Size k) {
        const Size codes = code_bytes(n, k, bits);
        const Size size = bits ? codes + scale_bytes(n, k, encoding) : n * k * (dtype == kF32 ? 4 : 2);
        std::unique_ptr<uint8_t[]> all(new uint8_t[experts * size]);
        for (Size i = 0; i < experts; ++i) {
            Numbers plain(dtype, n * k);
            uint8_t* start = all.get() + i * size;
            if (encoding == kMxfp4) {
                Mxfp4Weight(n, k, start, start + codes);
                continue;
            }
            if (bits == 0) {
                std::memcpy(start, plain.data(), size_t(size));
                continue;
            }
            llmctl_quantize(int(bits), plain.data(), dtype, n, k, start, start + codes, 2);
        }
        return all;
    };
    const auto gate_up_proj = packed(2 * inner, hidden), up_proj = packed(inner, hidden), down_proj = packed(hidden, inner);
    Matrix router(dtype, experts, hidden, 0);
    Numbers gate_up_bias(dtype, experts * 2 * inner), down_bias(dtype, experts * hidden), sinks(dtype, heads), expert_factors(dtype, experts);
    Matrix words_in(dtype, words, hidden, bits), q(dtype, heads * width, hidden, bits), k(dtype, kv_heads * width, hidden, bits),
        v(dtype, kv_heads * width, hidden, bits), o(dtype, hidden, heads * width, bits), gate(dtype, inner, hidden, bits),
        up(dtype, inner, hidden, bits), down(dtype, hidden, inner, bits), head(dtype, words, hidden, bits);
    Numbers weights(dtype, hidden), head_weights(dtype, 4 * 10 * 10), head_norm(dtype, width);
    const Size kernel_size = 3;
    Numbers conv(dtype, kernel_size * hidden), conv_bias(dtype, hidden), conv_state(dtype, 2 * (kernel_size - 1) * hidden);
    const Size state_heads = 4, groups = 2, state_size = 6;  // of the linear recurrences: 2 * groups * 6 + hidden = 64
    const Size state_numbers = 2 * state_heads * state_size * padded(hidden / state_heads);
    Numbers delta_state(0, state_numbers), scan_state(0, state_numbers), a_log(dtype, state_heads), step_bias(dtype, state_heads);
    Matrix wide(dtype, 64, hidden, bits);
    std::vector<Operation> ops;
    const auto add = [&](Size kind, Size in, Size in_stride, Size out, Size n) -> Operation& {
        Operation op{};
        op.kind = kind, op.input = in, op.input_stride = in_stride, op.output = out, op.n = n, op.scale = 1.0f, op.epsilon = 1e-5f;
        op.weight_dtype = dtype;
        ops.push_back(op);
        return ops.back();
    };
    const auto norm = [&](Size in, Size out, Size flavour) {
        Operation& op = add(kRmsNorm, in, hidden, out, hidden);
        op.norm_flavour = flavour, op.weight = weights.data();
    };
    const auto prepare_heads = [&](Size in, Size count, Size destination, bool rotates) {
        Operation& op = add(kPrepareHeads, in, count * width, kQuery, 0);
        op.destination = destination, op.heads = count, op.head_size = width, op.head_stride = op.output_head_stride = width;
        op.output_stride = count * width;
        op.rotary_size = rotates ? rotary : 0, op.weight = rotates ? head_norm.data() : nullptr;
    };
    ops.push_back(words_in.op(kEmbedding, 0, kX));
    ops.back().n = hidden, ops.back().scale = 1.5f;
    norm(kX, kNormed, kNormThenWeight);
    ops.push_back(q.op(kLinear, kNormed, kQ));
    ops.push_back(k.op(kLinear, kNormed, kK, 1));
    ops.push_back(v.op(kLinear, kNormed, kV, 1));
    prepare_heads(kQ, heads, kBuffer, true);
    prepare_heads(kK, kv_heads, kKeys, true);
    prepare_heads(kV, kv_heads, kValues, false);
    ops.back().norm_flavour = kNoWeight;
    Operation& attention = add(kAttention, kQuery, heads * width, kAttended, 0);
    attention.heads = heads, attention.kv_heads = kv_heads, attention.head_size = attention.value_size = width;
    attention.scale = 0.4f, attention.bias = sinks.data(), attention.bias_dtype = dtype;
    ops.push_back(o.op(kLinear, kAttended, kSublayerOutput));
    const auto add_residual = [&] {
        Operation& op = add(kAdd, kX, hidden, kX, hidden);
        op.other = kSublayerOutput, op.other_stride = hidden, op.scale = 0.5f;
    };
    add_residual();
    Operation& causal_conv = add(kCausalConv, kX, hidden, kSublayerOutput, hidden);
    causal_conv.weight = conv.data(), causal_conv.bias = conv_bias.data(), causal_conv.bias_dtype = dtype;
    causal_conv.kernel_size = kernel_size;
    add_residual();
    norm(kX, kNormed, kNormThenWeight);
    ops.push_back(wide.op(kLinear, kNormed, kWide));
    const auto recurrence = [&](Size kind, Size out, Size n, Size state) {
        Operation& op = add(kind, kWide, 64, out, n);
        op.other = op.step = op.beta = kNormed, op.other_stride = op.step_stride = op.beta_stride = hidden;
        op.step_offset = 4, op.beta_offset = 8, op.state = state;
        op.heads = state_heads, op.kv_heads = groups, op.head_size = hidden / state_heads, op.state_size = state_size;
        op.a_log = a_log.data(), op.step_bias = op.skip = step_bias.data(), op.head_dtype = dtype;
        op.step_high = 5.0f, op.weight = weights.data();
    };
    recurrence(kDeltaRule, kSublayerOutput, hidden, 1);
    add_residual();
    recurrence(kSelectiveScan, kScanned, hidden * (dtype == kF32 ? 1 : 2), 2);
    Operation& gated_norm = add(kGatedNorm, kScanned, hidden * (dtype == kF32 ? 1 : 2), kSublayerOutput, hidden);
    gated_norm.other = kNormed, gated_norm.other_stride = hidden, gated_norm.head_size = hidden / groups;
    gated_norm.weight = weights.data(), gated_norm.gate_last = 1;
    add_residual();
    Operation& only_gate = add(kGatedNorm, kScanned, hidden * (dtype == kF32 ? 1 : 2), kSublayerOutput, hidden);
    only_gate.other = kNormed, only_gate.other_stride = hidden;
    add_residual();
    Operation& gates = add(kGatedActivation, kNormed, hidden, kSublayerOutput, hidden);
    gates.other = kX, gates.other_stride = hidden, gates.k = 4, gates.activation = kSigmoid;
    add(kActivation, kSublayerOutput, hidden, kSublayerOutput, hidden).activation = kGelu;
    add_residual();
    norm(kX, kNormed, kOnePlusWeight);
    ops.push_back(gate.op(kLinear, kNormed, kGate));
    ops.push_back(up.op(kLinear, kNormed, kUp, 1));
    Operation& gated = add(kGatedActivation, kGate, inner, kInner, inner);
    gated.other = kUp, gated.other_stride = inner, gated.activation = kGeluTanh;
    ops.push_back(down.op(kLinear, kInner, kSublayerOutput));
    add_residual();
    {
        ops.push_back(router.op(kLinear, kNormed, kRouter));
        Operation& route = add(kRoute, kRouter, experts, kRoutes, 0);
        route.experts = experts, route.top_k = top_k, route.normalize_top_k = 1;
        Operation& moe = add(kExperts, kNormed, hidden, kSublayerOutput, hidden);
        moe.other = kRoutes, moe.experts = experts, moe.top_k = top_k, moe.intermediate_size = inner, moe.bits = bits, moe.encoding = encoding;
        moe.weight = gate_up_proj.get(), moe.down_weight = down_proj.get(), moe.bias_dtype = dtype, moe.interleaved = 1;
        moe.bias = gate_up_bias.data(), moe.down_bias = down_bias.data();
        moe.activation = kClampedSwiglu, moe.alpha = 1.7f, moe.limit = 1.0f;
        add_residual();
        Operation& by_group = add(kRoute, kRouter, experts, kRoutes, 0);
        by_group.experts = by_group.groups = experts, by_group.top_groups = by_group.top_k = top_k, by_group.group_best = 1;
        by_group.scoring = kTopSigmoid, by_group.skip = expert_factors.data(), by_group.head_dtype = dtype;
        Operation& ungated = add(kExperts, kNormed, hidden, kSublayerOutput, hidden);
        ungated.other = kRoutes, ungated.experts = experts, ungated.top_k = top_k, ungated.intermediate_size = inner;
        ungated.bits = bits, ungated.weight = up_proj.get(), ungated.down_weight = down_proj.get();
        ungated.ungated = ungated.weighs_inputs = 1, ungated.activation = kReluSquared;
        add_residual();
    }
    add(kGatherLast, kX, hidden, kLast, hidden);
    const size_t gathered = ops.size();
    norm(kLast, kEnd, kLayerNorm);  // a layer of which only the last tokens matter, with the keys and values of the first
    ops.push_back(q.op(kLinear, kEnd, kQ));
    prepare_heads(kQ, heads, kBuffer, true);
    ops.back().rope_layout = kPairsOfHalves, ops.back().rope_in_float32 = 1, ops.back().token_factor = 1;
    ops.back().norm_last = 1;
    Operation& shared = add(kAttention, kQuery, heads * width, kAttended, 0);
    shared.heads = heads, shared.kv_heads = kv_heads, shared.head_size = shared.value_size = width, shared.scale = 0.4f, shared.softcap = 5.0f;
    shared.chunk = 5;
    ops.push_back(o.op(kLinear, kAttended, kEnd));
    Operation& scale = add(kScale, kEnd, hidden, kLast, hidden);
    scale.scale = 0.7f, scale.output_stride = hidden;
    Operation& by_head = add(kLinearHeads, kLast, hidden, kEnd, 10);
    by_head.k = 10, by_head.heads = 4, by_head.head_stride = by_head.output_head_stride = 10, by_head.output_stride = hidden;
    by_head.weight = head_weights.data();
    Operation& latent = add(kAttention, kQuery, heads * width, kAttended, 0);  // the keys are the values, too
    latent.heads = heads, latent.kv_heads = kv_heads, latent.head_size = width, latent.scale = 0.4f;
    latent.value_size = width, latent.values_in_keys = 1;
    ops.push_back(o.op(kLinear, kAttended, kLast));
    Operation& sum = add(kAdd, kLast, hidden, kLast, hidden);
    sum.other = kEnd, sum.other_stride = hidden;
    norm(kLast, kEnd, kWeightThenRound);
    ops.push_back(head.op(kLinear, kEnd, 0));
    ops.back().destination = kLogits;
    for (size_t i = gathered; i < ops.size(); ++i) ops[i].per_sequence = 1;

    Numbers keys(dtype, pages * page * kv_heads * width), values(dtype, pages * page * kv_heads * width);
    Numbers cosines(kF32, 16 * rotary), sines(kF32, 16 * rotary), factors(kF32, 16);  // by position
    // Run tokens first..end of each sequence, whose pages begin at the given one; returns the logits.
    struct Sequence {
        Size salt, first, end, page;
    };
    const auto run = [&](const std::vector<Sequence>& sequences) {
        std::vector<Size> ids, slots, last;
        std::vector<int32_t> starts{0}, lengths, table, state_slots;
        std::vector<Size> places;
        for (const Sequence& sequence : sequences) {
            for (Size p = sequence.first; p < sequence.end; ++p) {
                ids.push_back((sequence.salt + 5 * p) % words);
                slots.push_back(sequence.page * page + p);
                places.push_back(p);
            }
            starts.push_back(int32_t(ids.size()));
            lengths.push_back(int32_t(sequence.end));
            state_slots.push_back(int32_t(sequence.page / 4));
            last.push_back(Size(ids.size()) - 1);
            for (Size i = 0; i < 4; ++i) table.push_back(int32_t(sequence.page + i));
        }
        const Size tokens = Size(ids.size());
        std::vector<Numbers> buffers;
        std::vector<void*> pointers;
        for (const Size row : widths) buffers.emplace_back(dtype, tokens * row);
        for (Numbers& buffer : buffers) pointers.push_back(buffer.data());
        std::vector<float> cosine, sine, factor;
        for (const Size place : places) {
            factor.push_back(float(factors[place]));
            for (Size i = place * rotary; i < (place + 1) * rotary; ++i) {
                cosine.push_back(float(cosines[i])), sine.push_back(float(sines[i]));
            }
        }
        const float *rope_cos[] = {cosine.data()}, *rope_sin[] = {sine.data()}, *token_factors[] = {factor.data()};
        void *keys_of[] = {keys.data()}, *values_of[] = {values.data()};
        void* states[] = {conv_state.data(), delta_state.data(), scan_state.data()};
        std::vector<float> logits(sequences.size() * words);
        const Pass pass{dtype, tokens, Size(sequences.size()), pointers.data(), logits.data(), ids.data(), slots.data(), last.data(),
                        rope_cos, rope_sin, token_factors, keys_of, values_of, table.data(), starts.data(), lengths.data(), states,
                        state_slots.data(), 4, page, 2};
        llmctl_run_program(ops.data(), Size(ops.size()), &pass);
        return logits;
    };
    const auto first = run({{1, 0, 11, 0}}), second = run({{2, 0, 3, 4}});
    run({{1, 0, 7, 0}, {2, 0, 2, 4}});
    const auto both = run({{1, 7, 11, 0}, {2, 2, 3, 4}});
    double size = 0;
    for (const float value : first) size += std::fabs(value);
    expect(size > 0 && std::isfinite(size), isa, "program is finite", dtype, bits, 1);
    expect(std::memcmp(both.data(), first.data(), words * 4) == 0, isa, "program packed", dtype, bits, 11);
    expect(std::memcmp(both.data() + words, second.data(), words * 4) == 0, isa, "program packed", dtype, bits, 3);
}

}  // namespace

int main() {
    for (int i = 0; const char* isa = llmctl_usable(i); ++i) {
        llmctl_select(isa);
        for (const int dtype : {0, 1, 2}) {
            for (const Size rows : {1, 3, 5, 8, 9, 17}) {
                try_linear(isa, 1, 1, rows, dtype);
                try_linear(isa, 33, 50, rows, dtype);
                try_linear(isa, 48, 96, rows, dtype);
                try_linear(isa, 20, 2100, rows, dtype);
            }
            try_linear(isa, 70, 64, 131, dtype);
            for (const Size width : {1, 40, 300}) try_activation(isa, width, dtype);
            for (const Size bits : {0, 4, 8}) try_program(isa, dtype, bits);
            try_program(isa, dtype, 4, llmctl::kMxfp4);
            for (const Size width : {8, 24, 64}) {
                const float sinks[] = {-1.0f, 0.0f, 2.0f, 9.0f};
                try_attention(isa, 1, 1, width, 0, 0, nullptr, dtype);
                try_attention(isa, 70, 70, width, 0, 0, nullptr, dtype);
                try_attention(isa, 150, 3, width, 20, 0, nullptr, dtype);
                try_attention(isa, 150, 30, width, 20, 0, sinks, dtype);
                try_attention(isa, 150, 90, width, 0, 40, nullptr, dtype);
            }
        }
        std::printf("%s done\n", isa);
    }
    std::printf("%s\n", failures ? "FAILED" : "all hold");
    return failures != 0;
}
