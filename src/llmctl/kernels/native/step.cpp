#include "step.h"

#include <cstring>

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

    // One product, or all that follow it with the same input; returns how many.
    Size linear(const Op* op, Size left) const {
        const auto y = [&](const Op& one) -> void* { return one.out < 0 ? static_cast<void*>(pass.logits) : buffer(one.out); };
        const auto y_dtype = [&](const Op& one) { return one.out < 0 ? static_cast<int>(kF32) : dtype; };
        if (op->bits == 0) {
            dense_product(in(*op, 0), dtype, rows(*op), op->k, op->weight, static_cast<int>(op->weight_dtype), op->n,
                          op->bias, static_cast<int>(op->bias_dtype), y(*op), y_dtype(*op), threads);
            return 1;
        }
        constexpr Size kMost = 8;
        Product wanted[kMost];
        Size count = 0;
        do {
            const Op& one = op[count];
            wanted[count] = {static_cast<int>(one.bits), one.n, one.weight, one.scales, one.bias,
                             static_cast<int>(one.bias_dtype), y(one), y_dtype(one)};
            ++count;
        } while (count < left && count < kMost && op[count].kind == kLinear && op[count].again && op[count].bits);
        products(in(*op, 0), dtype, rows(*op), op->k, wanted, static_cast<int>(count), threads);
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
