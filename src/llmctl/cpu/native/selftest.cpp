// Every function on every instruction set that can run here, against sums in double, on memory that ends where it has to:
// for sanitizers (make kernels-sanitize) and for processors without Python, emulated ones too. Not installed.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "convert.h"
#include "kernels.h"
#include "step.h"

extern "C" {
const char* llmctl_select(const char*);
const char* llmctl_usable(int);
void llmctl_linear_quantized(int, const void*, int, Size, Size, const void*, const void*, Size, const void*, int, void*, int,
                             int);
void llmctl_linear(const void*, int, Size, Size, const void*, int, Size, const void*, int, void*, int, int);
void llmctl_quantize(int, const void*, int, Size, Size, void*, void*, int);
void llmctl_attention(const void*, int, const void*, const void*, int, void*, const int32_t*, const int32_t*,
                      const int32_t*, const Size*, float, float, int);
void llmctl_step(const llmctl::Op*, Size, const llmctl::Pass*);
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
        llmctl_linear_quantized(bits, x.data(), dtype, rows, k, codes.get(), scales.get(), n, bias.data(), dtype, y.data(),
                                0, 2);
        expect_sums([&](Size i, Size j) { return weight_at(bits, codes.get(), scales.get(), blocks, i, j); });
        expect(error(y, expected) < 0.02, isa, "quantised", n, k, rows);  // x is rounded to 8 bits
        llmctl_linear_quantized(bits, last, dtype, 1, k, codes.get(), scales.get(), n, bias.data(), dtype, alone.data(), 0,
                                1);
        expect(same_alone(), isa, "quantised alone", n, k, rows);
    }
}

void try_attention(const char* isa, Size length, Size queries, Size width, Size window, int dtype) {
    const Size heads = 4, kv_heads = 2, block_size = 16, blocks = llmctl::ceil_div(length, block_size);
    Numbers q(dtype, queries * heads * width), k(dtype, blocks * block_size * kv_heads * width),
        v(dtype, blocks * block_size * kv_heads * width), out(dtype, queries * heads * width);
    std::vector<int32_t> table(blocks);
    for (Size i = 0; i < blocks; ++i) table[i] = int32_t(blocks - 1 - i);
    const int32_t starts[] = {0, int32_t(queries)}, lengths[] = {int32_t(length)};
    const Size block = block_size * kv_heads * width, slot = kv_heads * width;
    const Size sizes[] = {1, blocks, block_size, heads, kv_heads, width, width, block, slot, width, block, slot, width, window};
    llmctl_attention(q.data(), dtype, k.data(), v.data(), dtype, out.data(), table.data(), starts, lengths, sizes, 0.2f, 0.0f,
                     2);
    std::vector<double> expected(queries * heads * width);
    for (Size t = 0; t < queries; ++t)
        for (Size h = 0; h < heads; ++h) {
            const Size at = length - queries + t;
            const auto place = [&](Size p) { return table[p / 16] * block + p % 16 * slot + h / 2 * width; };
            double sum = 0;
            for (Size p = window && at - window + 1 > 0 ? at - window + 1 : 0; p <= at; ++p) {
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

// A weight [n][k] in `bits`, or as it is, in memory of exactly its size.
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
    llmctl::Op op(Size kind, Size in, Size out, Size again = 0) {
        llmctl::Op found{};
        found.kind = kind, found.in = in, found.in_stride = k, found.out = out, found.n = n, found.k = k, found.bits = bits;
        found.again = again, found.scale = 1.0f, found.weight_dtype = plain.dtype;
        found.weight = bits ? static_cast<void*>(codes.data()) : plain.data();
        found.scales = scales.data();
        return found;
    }
};

// A model of one layer: sequences packed, and cut into two passes, give what each gives alone in one.
void try_step(const char* isa, int dtype, Size bits) {
    using namespace llmctl;
    const Size hidden = 40, heads = 4, kv_heads = 2, width = 6, turned = 4, inner = 36, words = 21, pages = 8, page = 4;
    enum { kX, kNormed, kQ, kK, kV, kQuery, kAttended, kMoved, kGate, kUp, kInner, kLast, kEnd, kRouter, kRoutes };
    const Size widths[] = {hidden, hidden, heads * width, kv_heads * width, kv_heads * width, heads * width, heads * width,
                           hidden, inner, inner, inner, hidden, hidden, 3, 8};
    const Size experts = 3, chosen = 2;  // a mixture, where weights are quantised
    const auto packed = [&](Size n, Size k) {
        const Size codes = ceil_div(n, 16) * ceil_div(k, 32) * 64 * bits, scales = ceil_div(n, 16) * ceil_div(k, 32) * 32;
        std::unique_ptr<uint8_t[]> all(new uint8_t[bits ? experts * (codes + scales) : 1]);
        for (Size i = 0; bits && i < experts; ++i) {
            Numbers plain(dtype, n * k);
            uint8_t* start = all.get() + i * (codes + scales);
            llmctl_quantize(int(bits), plain.data(), dtype, n, k, start, start + codes, 2);
        }
        return all;
    };
    const auto there = packed(2 * inner, hidden), and_back = packed(hidden, inner);
    Matrix router(dtype, experts, hidden, 0);
    Matrix words_in(dtype, words, hidden, bits), q(dtype, heads * width, hidden, bits), k(dtype, kv_heads * width, hidden, bits),
        v(dtype, kv_heads * width, hidden, bits), o(dtype, hidden, heads * width, bits), gate(dtype, inner, hidden, bits),
        up(dtype, inner, hidden, bits), down(dtype, hidden, inner, bits), head(dtype, words, hidden, bits);
    Numbers weights(dtype, hidden), own(dtype, width);
    std::vector<Op> ops;
    const auto add = [&](Size kind, Size in, Size in_stride, Size out, Size n) -> Op& {
        Op op{};
        op.kind = kind, op.in = in, op.in_stride = in_stride, op.out = out, op.n = n, op.scale = 1.0f, op.epsilon = 1e-5f;
        op.weight_dtype = dtype;
        ops.push_back(op);
        return ops.back();
    };
    const auto norm = [&](Size in, Size out, Size flavour) {
        Op& op = add(kNorm, in, hidden, out, hidden);
        op.flavour = flavour, op.weight = weights.data();
    };
    const auto to_heads = [&](Size in, Size count, Size out, bool turns) {
        Op& op = add(kHeads, in, count * width, out, 0);
        op.heads = count, op.width = width, op.rotated = turns ? turned : 0, op.weight = turns ? own.data() : nullptr;
    };
    ops.push_back(words_in.op(kEmbed, 0, kX));
    ops.back().n = hidden, ops.back().scale = 1.5f;
    norm(kX, kNormed, kNormThenWeight);
    ops.push_back(q.op(kLinear, kNormed, kQ));
    ops.push_back(k.op(kLinear, kNormed, kK, 1));
    ops.push_back(v.op(kLinear, kNormed, kV, 1));
    to_heads(kQ, heads, kQuery, true);
    to_heads(kK, kv_heads, -1, true);
    to_heads(kV, kv_heads, -2, false);
    Op& attend = add(kAttend, kQuery, heads * width, kAttended, 0);
    attend.heads = heads, attend.kv_heads = kv_heads, attend.width = attend.value_width = width, attend.scale = 0.4f;
    ops.push_back(o.op(kLinear, kAttended, kMoved));
    const auto back = [&] {
        Op& op = add(kAdd, kX, hidden, kX, hidden);
        op.other = kMoved, op.other_stride = hidden, op.scale = 0.5f;
    };
    back();
    norm(kX, kNormed, kOnePlusWeight);
    ops.push_back(gate.op(kLinear, kNormed, kGate));
    ops.push_back(up.op(kLinear, kNormed, kUp, 1));
    Op& gated = add(kGated, kGate, inner, kInner, inner);
    gated.other = kUp, gated.other_stride = inner, gated.flavour = kGeluTanh;
    ops.push_back(down.op(kLinear, kInner, kMoved));
    back();
    if (bits) {
        ops.push_back(router.op(kLinear, kNormed, kRouter));
        Op& route = add(kRoute, kRouter, experts, kRoutes, experts);
        route.chosen = chosen, route.normalised = 1;
        Op& mixture = add(kExperts, kNormed, hidden, kMoved, hidden);
        mixture.other = kRoutes, mixture.chosen = chosen, mixture.width = experts, mixture.k = inner, mixture.bits = bits;
        mixture.weight = there.get(), mixture.second = and_back.get();
        back();
    }
    add(kGather, kX, hidden, kLast, hidden);
    const size_t gathered = ops.size();
    norm(kLast, kEnd, kWeightedNorm);
    ops.push_back(head.op(kLinear, kEnd, -1));
    for (size_t i = gathered; i < ops.size(); ++i) ops[i].per_sequence = 1;

    Numbers keys(dtype, pages * page * kv_heads * width), values(dtype, pages * page * kv_heads * width);
    Numbers cosines(dtype, 16 * turned), sines(dtype, 16 * turned);  // by position
    // Run tokens first..end of each sequence, whose pages begin at the given one; returns the logits.
    struct Part {
        Size salt, first, end, page;
    };
    const auto run = [&](const std::vector<Part>& parts) {
        std::vector<Size> ids, slots, last;
        std::vector<int32_t> starts{0}, lengths, table;
        std::vector<Size> places;
        for (const Part& part : parts) {
            for (Size p = part.first; p < part.end; ++p) {
                ids.push_back((part.salt + 5 * p) % words);
                slots.push_back(part.page * page + p);
                places.push_back(p);
            }
            starts.push_back(int32_t(ids.size()));
            lengths.push_back(int32_t(part.end));
            last.push_back(Size(ids.size()) - 1);
            for (Size i = 0; i < 4; ++i) table.push_back(int32_t(part.page + i));
        }
        const Size tokens = Size(ids.size());
        std::vector<Numbers> buffers;
        std::vector<void*> pointers;
        for (const Size row : widths) buffers.emplace_back(dtype, tokens * row);
        for (Numbers& buffer : buffers) pointers.push_back(buffer.data());
        const Size size = dtype == kF32 ? 4 : 2;
        std::unique_ptr<char[]> cosine(new char[tokens * turned * size]), sine(new char[tokens * turned * size]);
        for (Size t = 0; t < tokens; ++t) {
            std::memcpy(cosine.get() + t * turned * size, advanced(cosines.data(), dtype, places[t] * turned), turned * size);
            std::memcpy(sine.get() + t * turned * size, advanced(sines.data(), dtype, places[t] * turned), turned * size);
        }
        const void *cosine_of[] = {cosine.get()}, *sine_of[] = {sine.get()};
        void *keys_of[] = {keys.data()}, *values_of[] = {values.data()};
        std::vector<float> logits(parts.size() * words);
        const Pass pass{dtype, tokens, Size(parts.size()), pointers.data(), logits.data(), ids.data(), slots.data(), last.data(),
                        cosine_of, sine_of, keys_of, values_of, table.data(), starts.data(), lengths.data(), 4, page, 2};
        llmctl_step(ops.data(), Size(ops.size()), &pass);
        return logits;
    };
    const auto first = run({{1, 0, 11, 0}}), second = run({{2, 0, 3, 4}});
    run({{1, 0, 7, 0}, {2, 0, 2, 4}});
    const auto both = run({{1, 7, 11, 0}, {2, 2, 3, 4}});
    double size = 0;
    for (const float value : first) size += std::fabs(value);
    expect(size > 0 && std::isfinite(size), isa, "step is finite", dtype, bits, 1);
    expect(std::memcmp(both.data(), first.data(), words * 4) == 0, isa, "step packed", dtype, bits, 11);
    expect(std::memcmp(both.data() + words, second.data(), words * 4) == 0, isa, "step packed", dtype, bits, 3);
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
            for (const Size bits : {0, 4, 8}) try_step(isa, dtype, bits);
            for (const Size width : {8, 24, 64}) {
                try_attention(isa, 1, 1, width, 0, dtype);
                try_attention(isa, 70, 70, width, 0, dtype);
                try_attention(isa, 150, 3, width, 20, dtype);
            }
        }
        std::printf("%s done\n", isa);
    }
    std::printf("%s\n", failures ? "FAILED" : "all hold");
    return failures != 0;
}
