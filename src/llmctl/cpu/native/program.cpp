#include "program.h"

#include <cstring>
#include <vector>

#include "experts.h"

namespace llmctl {
namespace {

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

    // The media of a token for an operation, or null for text and for operations that take no media.
    const char* media_of(const Operation& op, Size row) const {
        if (op.media == 0 || pass.media_rows == nullptr || pass.media_rows[row] < 0) return nullptr;
        return static_cast<const char*>(pass.media[op.media - 1]) + bytes(pass.media_rows[row] * op.n);
    }

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
        float* sinks = op.bias ? static_cast<float*>(scratch(kBias, op.heads * 4)) : nullptr;
        if (sinks) isa->to_f32(op.bias, static_cast<int>(op.bias_dtype), sinks, op.heads);
        const int32_t* query_start = op.per_sequence ? sequence_numbers.data() : pass.query_start;
        const Size slot = op.kv_heads * op.head_size, page = pass.page_tokens * slot;
        const bool is_latent = op.values_in_keys;
        const Size value_head = is_latent ? op.head_size : op.value_size, value_slot = op.kv_heads * value_head;
        const void* values = is_latent ? pass.keys[op.layer] : pass.values[op.layer];
        const int32_t* visible_end = op.window > 0 ? pass.window_visible_end : pass.visible_end;
        const Attention job{buffer(op.input),  dtype,            pass.keys[op.layer], values,         dtype,
                            buffer(op.output), pass.page_table,  query_start,         pass.kv_length, pass.sequences,
                            pass.max_pages,    pass.page_tokens, op.heads,            op.kv_heads,    op.head_size,
                            op.value_size,     page,             slot,                op.head_size,
                            pass.page_tokens * value_slot,       value_slot,          value_head,     op.scale,
                            op.softcap,        op.window,        op.chunk,       sinks,
                            op.per_sequence ? nullptr : visible_end};
        attend(job, threads);
    }

    // The product of each head's part of x with its own weight [n][k].
    void linear_heads(const Operation& op) const {
        const Size tokens = rows(op), weight_bytes = op.n * op.k * bytes_of(static_cast<int>(op.weight_dtype));
        parallel_for(op.heads, 1, threads, [&](Size begin, Size end) {
            for (Size head = begin; head < end; ++head) {
                char* x = static_cast<char*>(scratch(kHead, bytes(tokens * (op.k + op.n))));
                char* y = x + bytes(tokens * op.k);
                for (Size t = 0; t < tokens; ++t) {
                    std::memcpy(x + bytes(t * op.k), input(op, t) + bytes(head * op.head_stride), size_t(bytes(op.k)));
                }
                const Product product{0, 0, op.n, static_cast<const char*>(op.weight) + head * weight_bytes, nullptr, nullptr, 0,
                                      y, dtype};
                dense_products(x, dtype, tokens, op.k, static_cast<int>(op.weight_dtype), &product, 1, 1);
                char* to = buffer(op.output) + bytes(op.output_offset + head * op.output_head_stride);
                for (Size t = 0; t < tokens; ++t) {
                    std::memcpy(to + bytes(t * op.output_stride), y + bytes(t * op.n), size_t(bytes(op.n)));
                }
            }
        });
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
        const Size width = op.floats ? op.experts * 4 : bytes(op.input_stride);
        each_row(op, [&](Size row, float* work) {
            isa->route_row(op, dtype, buffer(op.input) + row * width, top_experts(op, op.output, row),
                           top_weights(op, op.output, row), work);
        });
    }

    void experts(const Operation& op) const {
        const Routes routes{top_experts(op, op.other, 0), top_weights(op, op.other, 0), 2 * op.top_k};
        compute_experts(op, dtype, rows(op), input(op, 0), bytes(op.input_stride), routes, output(op, 0), bytes(op.n), threads);
    }

    // Compute a product and those after it with the same input and weight type. Return the number of products.
    Size linear(const Operation* op, Size left) const {
        std::vector<Product> wanted;
        Size count = 0;
        do {
            const Operation& one = op[count];
            const bool is_logits = one.destination == kLogits;
            void* y = is_logits ? static_cast<void*>(pass.logits) : buffer(one.output);
            const bool is_float = is_logits || one.destination == kFloats;
            wanted.push_back({static_cast<int>(one.bits), static_cast<int>(one.encoding), one.n, one.weight, one.scales, one.bias,
                              static_cast<int>(one.bias_dtype), y, is_float ? static_cast<int>(kF32) : dtype});
            ++count;
        } while (count < left && op[count].kind == kLinear && op[count].same_input &&
                 (op[count].bits == 0) == (op->bits == 0) && op[count].weight_dtype == op->weight_dtype);
        if (op->bits == 0) {
            dense_products(input(*op, 0), dtype, rows(*op), op->k, static_cast<int>(op->weight_dtype), wanted.data(),
                           static_cast<int>(count), threads);
        } else {
            quantized_products(input(*op, 0), dtype, rows(*op), op->k, wanted.data(), static_cast<int>(count), threads);
        }
        return count;
    }

    void run(const Operation& op) const {
        switch (op.kind) {
            case kEmbedding:
                each_row(op, [&](Size row, float* work) {
                    if (const char* media = media_of(op, row)) {
                        std::memcpy(output(op, row), media, static_cast<size_t>(bytes(op.n)));
                    } else {
                        isa->embedding_row(op, dtype, pass.token_ids[row], output(op, row), work);
                    }
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
            case kActivation:
                each_row(op, [&](Size row, float* work) {
                    isa->activation_row(op, dtype, input(op, row), output(op, row), work);
                });
                break;
            case kAdd:
                each_row(op, [&](Size row, float* work) {
                    isa->add_row(op, dtype, input(op, row), other(op, row), output(op, row), work);
                });
                break;
            case kAddMedia:
                if (pass.media_rows == nullptr || op.media > pass.media_count) break;
                each_row(op, [&](Size row, float* work) {
                    if (const char* media = media_of(op, row)) isa->add_row(op, dtype, input(op, row), media, output(op, row), work);
                });
                break;
            case kScale:
                each_row(op, [&](Size row, float* work) {
                    char* to = buffer(op.output) + bytes(op.output_offset + row * op.output_stride);
                    isa->scale_row(op, dtype, input(op, row), to, work);
                });
                break;
            case kLinearHeads:
                linear_heads(op);
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
