#include "step.h"

#include <cstring>
#include <utility>
#include <vector>

#include "work.h"

namespace llmctl {
namespace {

struct Running {
    const Pass& pass;
    int dtype, threads;

    explicit Running(const Pass& of) : pass(of), dtype(static_cast<int>(of.dtype)), threads(static_cast<int>(of.threads)) {}

    char* buffer(Size number) const { return static_cast<char*>(pass.buffers[number]); }
    Size bytes(Size elements) const { return elements * bytes_of(dtype); }
    Size rows(const Op& op) const { return op.per_sequence ? pass.sequences : pass.tokens; }
    const char* in(const Op& op, Size row) const { return buffer(op.in) + bytes(op.in_at + row * op.in_stride); }
    const char* other(const Op& op, Size row) const {
        return buffer(op.other) + bytes(op.other_at + row * op.other_stride);
    }

    template <class Function>
    void each_row(const Op& op, const Function& function) const {
        llmctl::each_row(op, rows(op), threads, function);
    }

    void heads(const Op& op) const {
        const bool turned = op.rotated > 0;
        const char* cosines = turned ? static_cast<const char*>(pass.cosines[op.angles]) : nullptr;
        const char* sines = turned ? static_cast<const char*>(pass.sines[op.angles]) : nullptr;
        const Size size = op.heads * op.width;
        char* to = op.out >= 0    ? buffer(op.out)
                   : op.out == -1 ? static_cast<char*>(pass.keys[op.layer])
                                  : static_cast<char*>(pass.values[op.layer]);
        each_row(op, [&](Size row, float* work) {
            const Size place = op.out >= 0 ? row : pass.slots[row];
            isa->heads_row(op, dtype, in(op, row), turned ? cosines + bytes(row * op.rotated) : nullptr,
                           turned ? sines + bytes(row * op.rotated) : nullptr, to + bytes(place * size), work);
        });
    }

    void attention(const Op& op) const {
        const Size k = op.kv_heads * op.width, v = op.kv_heads * op.value_width;
        const Attention job{buffer(op.in),   dtype,            pass.keys[op.layer],   pass.values[op.layer],
                            dtype,           buffer(op.out),   pass.page_table,       pass.query_start,
                            pass.kv_length,  pass.sequences,   pass.most_pages,       pass.page_tokens,
                            op.heads,        op.kv_heads,      op.width,              op.value_width,
                            pass.page_tokens * k, k,           op.width,              pass.page_tokens * v,
                            v,               op.value_width,   op.scale,              op.softcap,
                            op.window};
        attend(job, threads);
    }

    // Where a token's experts and their shares lie in the row of a buffer.
    int32_t* experts_of(const Op& op, Size number, Size row) const {
        return reinterpret_cast<int32_t*>(buffer(number) + row * op.chosen * 8);
    }
    float* shares_of(const Op& op, Size number, Size row) const {
        return reinterpret_cast<float*>(experts_of(op, number, row) + op.chosen);
    }

    void route(const Op& op) const {
        each_row(op, [&](Size row, float* work) {
            isa->route_row(op, dtype, in(op, row), experts_of(op, op.out, row), shares_of(op, op.out, row), work);
        });
    }

    // A weight of one expert: rows times columns, in a place of its own among those of the others.
    Product expert(const Op& op, const void* weights, Size number, Size n, Size k, void* y) const {
        const Size codes = ceil_div(n, kGroup) * ceil_div(k, kBlock) * 64 * op.bits;
        const Size all = codes + ceil_div(n, kGroup) * ceil_div(k, kBlock) * kGroup * 2;
        const char* start = static_cast<const char*>(weights) + number * all;
        return {static_cast<int>(op.bits), n, start, start + codes, nullptr, 0, y, dtype};
    }

    // Every token through its experts, expert after expert: hidden numbers in and out, `op.k` between.
    void experts(const Op& op) const {
        const Size tokens = rows(op), hidden = op.n, inner = op.k, most = tokens * op.chosen;
        std::vector<std::vector<std::pair<Size, float>>> users(static_cast<size_t>(op.width));
        for (Size t = 0; t < tokens; ++t) {
            for (Size c = 0; c < op.chosen; ++c) {
                users[experts_of(op, op.other, t)[c]].emplace_back(t, shares_of(op, op.other, t)[c]);
            }
        }
        std::vector<char> memory(static_cast<size_t>(bytes(most * (2 * hidden + 3 * inner)) + 64));
        char* x = memory.data();  // each of these: rows by expert
        char* both = x + bytes(most * hidden);
        char* gated = both + bytes(most * 2 * inner);
        char* results = gated + bytes(most * inner);
        std::memset(buffer(op.out), 0, static_cast<size_t>(bytes(tokens * hidden)));
        Op gate = op;
        gate.n = inner;
        Op add{};
        add.n = hidden, add.scale = 1.0f;
        if (tokens == 1) first_halves(op, users, both);
        Size first = 0;
        for (Size number = 0; number < op.width; ++number) {
            const auto& mine = users[number];
            const Size count = static_cast<Size>(mine.size());
            if (count == 0) continue;
            char *up = both + bytes(first * 2 * inner), *middle = gated + bytes(first * inner),
                 *result = results + bytes(first * hidden);
            if (tokens > 1) {
                for (Size i = 0; i < count; ++i) {
                    std::memcpy(x + bytes((first + i) * hidden), in(op, mine[i].first), static_cast<size_t>(bytes(hidden)));
                }
                const Product half = expert(op, op.weight, number, 2 * inner, hidden, up);
                products(x + bytes(first * hidden), dtype, count, hidden, &half, 1, threads);
            }
            llmctl::each_row(gate, count, threads, [&](Size row, float* work) {
                const char* from = up + bytes(row * 2 * inner);
                isa->gated_row(gate, dtype, from, from + bytes(inner), middle + bytes(row * inner), work);
            });
            const Product back = expert(op, op.second, number, hidden, inner, result);
            products(middle, dtype, count, inner, &back, 1, threads);
            llmctl::each_row(add, count, threads, [&](Size row, float* work) {
                weighted_add(add, mine[row].second, result + bytes(row * hidden), buffer(op.out) + bytes(mine[row].first * hidden),
                             work);
            });
            first += count;
        }
    }

    // One token: its experts all multiply the same row.
    void first_halves(const Op& op, const std::vector<std::vector<std::pair<Size, float>>>& users, char* both) const {
        std::vector<Product> wanted;
        for (Size number = 0; number < op.width; ++number) {
            if (users[number].empty()) continue;
            char* to = both + bytes(static_cast<Size>(wanted.size()) * 2 * op.k);
            wanted.push_back(expert(op, op.weight, number, 2 * op.k, op.n, to));
        }
        products(in(op, 0), dtype, 1, op.n, wanted.data(), static_cast<int>(wanted.size()), threads);
    }

    // sum += share * row, rounded after the product and after the sum.
    void weighted_add(const Op& op, float share, char* row, char* sum, float* work) const {
        isa->to_f32(row, dtype, work, op.n);
        for (Size i = 0; i < op.n; ++i) work[i] *= share;
        isa->from_f32(work, row, dtype, op.n);
        isa->add_row(op, dtype, sum, row, sum, work);
    }

    // One product, or all that follow it with the same input and weights of its kind; returns how many.
    Size linear(const Op* op, Size left) const {
        Product wanted[kMostProducts];
        int count = 0;
        do {
            const Op& one = op[count];
            void* y = one.out < 0 ? static_cast<void*>(pass.logits) : buffer(one.out);
            wanted[count] = {static_cast<int>(one.bits), one.n, one.weight, one.scales, one.bias,
                             static_cast<int>(one.bias_dtype), y, one.out < 0 ? static_cast<int>(kF32) : dtype};
            ++count;
        } while (count < left && count < kMostProducts && op[count].kind == kLinear && op[count].again &&
                 (op[count].bits == 0) == (op->bits == 0) && op[count].weight_dtype == op->weight_dtype);
        if (op->bits == 0) {
            dense_products(in(*op, 0), dtype, rows(*op), op->k, static_cast<int>(op->weight_dtype), wanted, count, threads);
        } else {
            products(in(*op, 0), dtype, rows(*op), op->k, wanted, count, threads);
        }
        return count;
    }
};

}  // namespace

void run_step(const Op* ops, Size count, const Pass& pass) {
    const Running run(pass);
    for (Size i = 0; i < count;) {
        const Op& op = ops[i];
        const auto out = [&](Size row) { return run.buffer(op.out) + run.bytes(row * op.n); };
        switch (op.kind) {
            case kEmbed:
                run.each_row(op, [&](Size row, float* work) { isa->embed_row(op, run.dtype, pass.ids[row], out(row), work); });
                break;
            case kNorm:
                run.each_row(op, [&](Size row, float* work) { isa->norm_row(op, run.dtype, run.in(op, row), out(row), work); });
                break;
            case kLinear:
                i += run.linear(ops + i, count - i);
                continue;
            case kHeads:
                run.heads(op);
                break;
            case kAttend:
                run.attention(op);
                break;
            case kGated:
                run.each_row(op, [&](Size row, float* work) {
                    isa->gated_row(op, run.dtype, run.in(op, row), run.other(op, row), out(row), work);
                });
                break;
            case kAdd:
                run.each_row(op, [&](Size row, float* work) {
                    isa->add_row(op, run.dtype, run.in(op, row), run.other(op, row), out(row), work);
                });
                break;
            case kRoute:
                run.route(op);
                break;
            case kExperts:
                run.experts(op);
                break;
            case kGather:
                for (Size s = 0; s < pass.sequences; ++s) {
                    std::memcpy(out(s), run.in(op, pass.last[s]), static_cast<size_t>(run.bytes(op.n)));
                }
                break;
        }
        ++i;
    }
}

}  // namespace llmctl
