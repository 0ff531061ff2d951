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

extern "C" {
const char* llmctl_select(const char*);
const char* llmctl_usable(int);
void llmctl_linear_quantized(int, const void*, int, Size, Size, const void*, const void*, Size, const void*, int, void*, int,
                             int);
void llmctl_linear(const void*, int, Size, Size, const void*, int, Size, const void*, int, void*, int, int);
void llmctl_quantize(int, const void*, int, Size, Size, void*, void*, int);
void llmctl_attention(const void*, int, const void*, const void*, int, void*, const int32_t*, const int32_t*,
                      const int32_t*, const Size*, float, float, int);
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
