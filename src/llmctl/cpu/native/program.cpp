#include "program.h"

#include <cstring>
#include <vector>

#include "work.h"

namespace llmctl {
namespace {

struct ExpertUse {
    Size token;
    float weight;
};

struct Runner {
    const Pass& pass;
    int dtype, threads;
    std::vector<int32_t> sequence_numbers;  // query_start for one query per sequence

    explicit Runner(const Pass& of) : pass(of), dtype(static_cast<int>(of.dtype)), threads(static_cast<int>(of.threads)) {
        for (Size i = 0; i <= pass.sequences; ++i) sequence_numbers.push_back(static_cast<int32_t>(i));
    }

    char* buffer(Size number) const { return static_cast<char*>(pass.buffers[number]); }
    Size bytes(Size elements) const { return elements * bytes_of(dtype); }
    Size rows(const Operation& op) const { return op.per_sequence ? pass.sequences : pass.tokens; }
    const char* input(const Operation& op, Size row) const {
        return buffer(op.input) + bytes(op.input_offset + row * op.input_stride);
    }
    const char* other(const Operation& op, Size row) const {
        return buffer(op.other) + bytes(op.other_offset + row * op.other_stride);
    }
    char* output(const Operation& op, Size row) const { return buffer(op.output) + bytes(row * op.n); }

    template <class Function>
    void each_row(const Operation& op, const Function& function) const {
        llmctl::each_row(op, rows(op), threads, function);
    }

    void prepare_heads(const Operation& op) const {
        const bool rotates = op.rotary_size > 0;
        const float* rope_cos = rotates ? pass.rope_cos[op.rope] : nullptr;
        const float* rope_sin = rotates ? pass.rope_sin[op.rope] : nullptr;
        const float* factors = op.token_factor ? pass.token_factors[op.token_factor - 1] : nullptr;
        const bool is_buffer = op.destination == kBuffer;
        char* to = is_buffer                  ? buffer(op.output)
                   : op.destination == kKeys ? static_cast<char*>(pass.keys[op.layer])
                                             : static_cast<char*>(pass.values[op.layer]);
        each_row(op, [&](Size row, float* work) {
            const Size token = op.per_sequence ? pass.last_tokens[row] : row, place = is_buffer ? row : pass.slots[token];
            isa->prepare_heads_row(op, dtype, input(op, row), rotates ? rope_cos + token * op.rotary_size : nullptr,
                                   rotates ? rope_sin + token * op.rotary_size : nullptr, factors ? factors[token] : 1.0f,
                                   to + bytes(place * op.output_stride + op.output_offset), work);
        });
    }

    void attention(const Operation& op) const {
        const int32_t* query_start = op.per_sequence ? sequence_numbers.data() : pass.query_start;
        const Size slot = op.kv_heads * op.head_size, page = pass.page_tokens * slot;
        const Attention job{buffer(op.input), dtype,          pass.keys[op.layer], pass.values[op.layer], dtype,
                            buffer(op.output), pass.page_table, query_start,       pass.kv_length,        pass.sequences,
                            pass.max_pages,   pass.page_tokens, op.heads,          op.kv_heads,           op.head_size,
                            op.head_size,     page,           slot,                op.head_size,          page,
                            slot,             op.head_size,   op.scale,            op.softcap,            op.window,
                            static_cast<const float*>(op.bias)};
        attend(job, threads);
    }

    // The new tokens of a sequence for an operation whose state has `state_bytes` in each slot.
    Recurrence recurrence(const Operation& op, Size sequence, Size state_bytes) const {
        const Size first = pass.query_start[sequence], tokens = pass.query_start[sequence + 1] - first;
        char* state = static_cast<char*>(pass.states[op.state]) + pass.state_slots[sequence] * state_bytes;
        const char* step = buffer(op.step) + bytes(op.step_offset + first * op.step_stride);
        const char* beta = buffer(op.beta) + bytes(op.beta_offset + first * op.beta_stride);
        const bool begins = tokens == pass.kv_length[sequence];
        return {tokens, begins, input(op, first), other(op, first), step, beta, output(op, first), state};
    }

    void causal_conv(const Operation& op) const {
        const Size blocks = ceil_div(op.n, kConvChannels), state_bytes = bytes((op.kernel_size - 1) * op.n);
        parallel_for(pass.sequences * blocks, 1, threads, [&](Size begin, Size end) {
            float* work = static_cast<float*>(scratch(kWork, causal_conv_scratch(op.kernel_size)));
            for (Size piece = begin; piece < end; ++piece) {
                const Size channel = piece % blocks * kConvChannels;
                const Size channel_end = channel + kConvChannels < op.n ? channel + kConvChannels : op.n;
                isa->causal_conv(op, dtype, recurrence(op, piece / blocks, state_bytes), channel, channel_end, work);
            }
        });
    }

    void recur(const Operation& op) const {
        const auto function = op.kind == kDeltaRule ? isa->delta_rule : isa->selective_scan;
        const Size state_bytes = op.heads * op.state_size * padded(op.head_size) * 4;
        parallel_for(pass.sequences * op.heads, 1, threads, [&](Size begin, Size end) {
            float* work = static_cast<float*>(scratch(kWork, recurrence_scratch(op.state_size, op.head_size)));
            for (Size piece = begin; piece < end; ++piece) {
                function(op, dtype, recurrence(op, piece / op.heads, state_bytes), piece % op.heads, work);
            }
        });
    }

    // The top experts of a token and their weights, in the row of a buffer.
    int32_t* top_experts(const Operation& op, Size number, Size row) const {
        return reinterpret_cast<int32_t*>(buffer(number) + row * op.top_k * 8);
    }
    float* top_weights(const Operation& op, Size number, Size row) const {
        return reinterpret_cast<float*>(top_experts(op, number, row) + op.top_k);
    }

    void route(const Operation& op) const {
        each_row(op, [&](Size row, float* work) {
            isa->route_row(op, dtype, input(op, row), top_experts(op, op.output, row), top_weights(op, op.output, row), work);
        });
    }

    // The product with one expert's weight [n][k]; `weights` has the weights of all experts, one after the other.
    Product expert_product(const Operation& op, const void* weights, Size expert, Size n, Size k, void* y) const {
        const Size blocks = ceil_div(n, kGroup) * ceil_div(k, kBlock), codes = blocks * 64 * op.bits;
        const char* start = static_cast<const char*>(weights) + expert * (codes + blocks * kGroup * 2);
        return {static_cast<int>(op.bits), n, start, start + codes, nullptr, 0, y, dtype};
    }

    std::vector<std::vector<ExpertUse>> uses_by_expert(const Operation& op) const {
        std::vector<std::vector<ExpertUse>> uses(static_cast<size_t>(op.experts));
        for (Size token = 0; token < rows(op); ++token) {
            for (Size i = 0; i < op.top_k; ++i) {
                uses[top_experts(op, op.other, token)[i]].push_back({token, top_weights(op, op.other, token)[i]});
            }
        }
        return uses;
    }

    // Compute all tokens of one expert after the other: gate_up_proj, the gated activation, down_proj.
    void experts(const Operation& op) const {
        const Size tokens = rows(op), hidden = op.n, inner = op.intermediate_size, most = tokens * op.top_k;
        const auto uses = uses_by_expert(op);
        std::vector<char> memory(static_cast<size_t>(bytes(most * (2 * hidden + 3 * inner)) + 64));
        char* inputs = memory.data();  // these have one row per (token, expert) pair, ordered by expert
        char* gate_ups = inputs + bytes(most * hidden);
        char* activations = gate_ups + bytes(most * 2 * inner);
        char* results = activations + bytes(most * inner);
        std::memset(output(op, 0), 0, static_cast<size_t>(bytes(tokens * hidden)));
        Operation gate{}, add{};
        gate.n = inner, gate.activation = op.activation;
        add.n = hidden, add.scale = 1.0f;
        if (tokens == 1) gate_up_of_one_token(op, uses, gate_ups);
        Size first = 0;
        for (Size expert = 0; expert < op.experts; ++expert) {
            const std::vector<ExpertUse>& mine = uses[expert];
            const Size count = static_cast<Size>(mine.size());
            if (count == 0) continue;
            char *gate_up = gate_ups + bytes(first * 2 * inner), *activation = activations + bytes(first * inner),
                 *result = results + bytes(first * hidden);
            if (tokens > 1) {
                char* x = inputs + bytes(first * hidden);
                for (Size i = 0; i < count; ++i) {
                    std::memcpy(x + bytes(i * hidden), input(op, mine[i].token), static_cast<size_t>(bytes(hidden)));
                }
                const Product product = expert_product(op, op.weight, expert, 2 * inner, hidden, gate_up);
                quantized_products(x, dtype, count, hidden, &product, 1, threads);
            }
            llmctl::each_row(gate, count, threads, [&](Size row, float* work) {
                const char* from = gate_up + bytes(row * 2 * inner);
                isa->gated_activation_row(gate, dtype, from, from + bytes(inner), activation + bytes(row * inner), work);
            });
            const Product down = expert_product(op, op.down_weight, expert, hidden, inner, result);
            quantized_products(activation, dtype, count, inner, &down, 1, threads);
            llmctl::each_row(add, count, threads, [&](Size row, float* work) {
                add_weighted(add, mine[row].weight, result + bytes(row * hidden), output(op, mine[row].token), work);
            });
            first += count;
        }
    }

    // With one token, all its experts multiply the same row, so their products are computed together.
    void gate_up_of_one_token(const Operation& op, const std::vector<std::vector<ExpertUse>>& uses, char* gate_ups) const {
        const Size width = 2 * op.intermediate_size;
        std::vector<Product> wanted;
        for (Size expert = 0; expert < op.experts; ++expert) {
            if (uses[expert].empty()) continue;
            char* to = gate_ups + bytes(static_cast<Size>(wanted.size()) * width);
            wanted.push_back(expert_product(op, op.weight, expert, width, op.n, to));
        }
        quantized_products(input(op, 0), dtype, 1, op.n, wanted.data(), static_cast<int>(wanted.size()), threads);
    }

    // sum += weight * row, rounded after the product and after the sum.
    void add_weighted(const Operation& op, float weight, char* row, char* sum, float* work) const {
        isa->to_f32(row, dtype, work, op.n);
        for (Size i = 0; i < op.n; ++i) work[i] *= weight;
        isa->from_f32(work, row, dtype, op.n);
        isa->add_row(op, dtype, sum, row, sum, work);
    }

    // Compute a product and those after it with the same input and weight type. Return the number of products.
    Size linear(const Operation* op, Size left) const {
        Product wanted[kMaxProducts];
        int count = 0;
        do {
            const Operation& one = op[count];
            const bool is_logits = one.destination == kLogits;
            void* y = is_logits ? static_cast<void*>(pass.logits) : buffer(one.output);
            wanted[count] = {static_cast<int>(one.bits), one.n, one.weight, one.scales, one.bias,
                             static_cast<int>(one.bias_dtype), y, is_logits ? static_cast<int>(kF32) : dtype};
            ++count;
        } while (count < left && count < kMaxProducts && op[count].kind == kLinear && op[count].same_input &&
                 (op[count].bits == 0) == (op->bits == 0) && op[count].weight_dtype == op->weight_dtype);
        if (op->bits == 0) {
            dense_products(input(*op, 0), dtype, rows(*op), op->k, static_cast<int>(op->weight_dtype), wanted, count, threads);
        } else {
            quantized_products(input(*op, 0), dtype, rows(*op), op->k, wanted, count, threads);
        }
        return count;
    }

    void run(const Operation& op) const {
        switch (op.kind) {
            case kEmbedding:
                each_row(op, [&](Size row, float* work) {
                    isa->embedding_row(op, dtype, pass.token_ids[row], output(op, row), work);
                });
                break;
            case kRmsNorm:
                each_row(op, [&](Size row, float* work) {
                    isa->rms_norm_row(op, dtype, input(op, row), output(op, row), work);
                });
                break;
            case kPrepareHeads:
                prepare_heads(op);
                break;
            case kAttention:
                attention(op);
                break;
            case kGatedActivation:
                each_row(op, [&](Size row, float* work) {
                    isa->gated_activation_row(op, dtype, input(op, row), other(op, row), output(op, row), work);
                });
                break;
            case kAdd:
                each_row(op, [&](Size row, float* work) {
                    isa->add_row(op, dtype, input(op, row), other(op, row), output(op, row), work);
                });
                break;
            case kScale:
                each_row(op, [&](Size row, float* work) { isa->scale_row(op, dtype, input(op, row), output(op, row), work); });
                break;
            case kRoute:
                route(op);
                break;
            case kExperts:
                experts(op);
                break;
            case kCausalConv:
                causal_conv(op);
                break;
            case kDeltaRule:
            case kSelectiveScan:
                recur(op);
                break;
            case kGatedNorm:
                each_row(op, [&](Size row, float* work) {
                    isa->gated_norm_row(op, dtype, input(op, row), other(op, row), output(op, row), work);
                });
                break;
            case kGatherLast:
                for (Size s = 0; s < pass.sequences; ++s) {
                    std::memcpy(output(op, s), input(op, pass.last_tokens[s]), static_cast<size_t>(bytes(op.n)));
                }
                break;
        }
    }
};

}  // namespace

void run_program(const Operation* ops, Size count, const Pass& pass) {
    const Runner runner(pass);
    for (Size i = 0; i < count;) {
        if (ops[i].kind == kLinear) {
            i += runner.linear(ops + i, count - i);
        } else {
            runner.run(ops[i++]);
        }
    }
}

}  // namespace llmctl
