#include "experts.h"

#include <cstring>
#include <vector>

namespace llmctl {
namespace {

// The (token, expert) pairs, ordered by expert. Every buffer between the products has one row for each.
struct Pairs {
    std::vector<Size> tokens, first;        // the token of each pair; the first pair of each expert, then the number of pairs
    std::vector<float> weights;
    std::vector<Size> of_token, token_end;  // the pairs of each token; the end of each token's part of them

    Pairs(const Operation& op, Size count, const Routes& routes) : first(size_t(op.experts) + 1), token_end(size_t(count)) {
        const auto each = [&](const auto& function) {
            for (Size t = 0; t < count; ++t) {
                for (Size i = 0; i < op.top_k; ++i) {
                    const Size expert = routes.experts[t * routes.stride + i];
                    if (expert >= 0 && expert < op.experts) function(t, expert, routes.weights[t * routes.stride + i]);
                }
            }
        };
        each([&](Size, Size expert, float) { ++first[expert + 1]; });
        for (Size expert = 0; expert < op.experts; ++expert) first[expert + 1] += first[expert];
        std::vector<Size> next(first.begin(), first.end() - 1);
        tokens.resize(size_t(first.back())), weights.resize(size_t(first.back())), of_token.resize(size_t(first.back()));
        each([&](Size t, Size expert, float weight) {
            tokens[next[expert]] = t;
            weights[next[expert]++] = weight;
        });
        for (const Size t : tokens) ++token_end[t];
        Size end = 0;
        for (Size& one : token_end) {
            const Size begin = end;
            end += one;
            one = begin;
        }
        for (Size pair = 0; pair < Size(tokens.size()); ++pair) of_token[token_end[tokens[pair]]++] = pair;
    }
    Size count() const { return Size(tokens.size()); }
};

// The products of each expert's rows of x [pair][k] with its weight [n][k] and the addition of its bias; y is [pair][n].
void multiply(const Operation& op, const Pairs& pairs, const void* weights, const void* bias, Size n, Size k, const char* x,
              char* y, int dtype, int threads) {
    const Size codes = code_bytes(n, k, op.bits);
    const Size weight_bytes = op.bits ? codes + scale_bytes(n, k, op.encoding) : n * k * bytes_of(int(op.weight_dtype));
    std::vector<InputProduct> wanted;
    for (Size expert = 0; expert < op.experts; ++expert) {
        const Size first = pairs.first[expert], rows = pairs.first[expert + 1] - first;
        if (rows == 0) continue;
        const char* start = static_cast<const char*>(weights) + expert * weight_bytes;
        const char* of_expert = bias ? static_cast<const char*>(bias) + expert * n * bytes_of(int(op.bias_dtype)) : nullptr;
        wanted.push_back({x + first * k * bytes_of(dtype), rows,
                          {int(op.bits), int(op.encoding), n, start, op.bits ? start + codes : nullptr, of_expert, int(op.bias_dtype),
                           y + first * n * bytes_of(dtype), dtype}});
    }
    separate_products(wanted.data(), int(wanted.size()), dtype, k, int(op.weight_dtype), threads);
}

}  // namespace

void compute_experts(const Operation& op, int dtype, Size tokens, const char* x, Size x_stride, const Routes& routes, char* out,
                     Size out_stride, int threads) {
    const Pairs pairs(op, tokens, routes);
    const Size size = bytes_of(dtype), hidden = op.n, inner = op.intermediate_size;
    char* inputs = static_cast<char*>(scratch(kExpertRows, pairs.count() * (2 * hidden + 3 * inner) * size));
    char* gate_ups = inputs + pairs.count() * hidden * size;
    char* activations = gate_ups + pairs.count() * 2 * inner * size;
    char* results = activations + pairs.count() * inner * size;
    for (Size pair = 0; pair < pairs.count(); ++pair) {
        std::memcpy(inputs + pair * hidden * size, x + pairs.tokens[pair] * x_stride, size_t(hidden * size));
    }
    Operation gate{}, add{};
    add.n = hidden, add.scale = 1.0f;
    const auto weigh = [&](char* row, float weight, float* work) {
        isa->to_f32(row, dtype, work, hidden);
        for (Size i = 0; i < hidden; ++i) work[i] *= weight;
        isa->from_f32(work, row, dtype, hidden);
    };
    if (op.weighs_inputs) {
        each_row(add, pairs.count(), threads, [&](Size pair, float* work) {
            weigh(inputs + pair * hidden * size, pairs.weights[pair], work);
        });
    }
    const Size first_width = op.ungated ? inner : 2 * inner;
    multiply(op, pairs, op.weight, op.bias, first_width, hidden, inputs, gate_ups, dtype, threads);
    gate.n = inner, gate.activation = op.activation, gate.interleaved = op.interleaved;
    gate.alpha = op.alpha, gate.limit = op.limit;
    each_row(gate, pairs.count(), threads, [&](Size row, float* work) {
        const char* from = gate_ups + row * first_width * size;
        if (op.ungated) return isa->activation_row(gate, dtype, from, activations + row * inner * size, work);
        isa->gated_activation_row(gate, dtype, from, from + inner * size, activations + row * inner * size, work);
    });
    multiply(op, pairs, op.down_weight, op.down_bias, hidden, inner, activations, results, dtype, threads);
    each_row(add, tokens, threads, [&](Size token, float* work) {
        char* sum = out + token * out_stride;
        std::memset(sum, 0, size_t(hidden * size));
        for (Size i = token ? pairs.token_end[token - 1] : 0; i < pairs.token_end[token]; ++i) {
            char* result = results + pairs.of_token[i] * hidden * size;
            if (!op.weighs_inputs) weigh(result, pairs.weights[pairs.of_token[i]], work);
            // rounded after the product, and after the sum
            isa->add_row(add, dtype, sum, result, sum, work);
        }
    });
}

}  // namespace llmctl
