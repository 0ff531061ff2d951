#include "work.h"

#include <cstring>

namespace llmctl {

const Isa* isa = nullptr;

namespace {

// Convert the biases of several products to float32. They are short, so this is done in every call.
void biases_f32(const Product* wanted, int count, const float** to) {
    Size size = 0;
    for (int i = 0; i < count; ++i) size += wanted[i].bias ? wanted[i].n : 0;
    float* place = static_cast<float*>(scratch(kBias, size * 4));
    for (int i = 0; i < count; ++i) {
        const Product& one = wanted[i];
        to[i] = static_cast<const float*>(one.bias);
        if (one.bias == nullptr || one.bias_dtype == kF32) continue;
        isa->to_f32(one.bias, one.bias_dtype, place, one.n);
        to[i] = place;
        place += one.n;
    }
}

QuantizedRows quantized(const void* x, int dtype, Size rows, Size k, int threads) {
    const Size blocks = ceil_div(k, kBlock), parts = rows * blocks;
    char* memory = static_cast<char*>(scratch(kInputs, parts * (kBlock + 8)));
    QuantizedRows to{rows, k, blocks, isa->query_tile, reinterpret_cast<int8_t*>(memory),
                     reinterpret_cast<float*>(memory + parts * kBlock),
                     reinterpret_cast<int32_t*>(memory + parts * (kBlock + 4))};
    parallel_for(rows, 16, threads, [&](Size begin, Size end) { isa->quantize_rows(x, dtype, to, begin, end); });
    return to;
}

// The pieces of one sequence's attention: split by rows, or by groups of heads if there are few rows.
struct PiecesOf {
    Size sequence, rows, kv_heads, tile, heads;
    PiecesOf(const Attention& job, Size r, Size limit)
        : sequence(r),
          rows((job.query_start[r + 1] - job.query_start[r]) * (job.query_heads / job.kv_heads)),
          kv_heads(job.kv_heads),
          tile(rows < limit ? (rows > 0 ? rows : 1) : limit),
          heads(limit / tile < kv_heads ? limit / tile : kv_heads) {}
    Size count() const { return ceil_div(rows, tile) * ceil_div(kv_heads, heads); }
    AttentionPiece at(Size index) const {
        const Size tiles = ceil_div(rows, tile), row = index % tiles * tile, head = index / tiles * heads;
        return {sequence, head, head + heads < kv_heads ? head + heads : kv_heads, row,
                row + tile < rows ? row + tile : rows};
    }
};

}  // namespace

void quantized_products(const void* x, int x_dtype, Size rows, Size k, const Product* wanted, int count, int threads) {
    if (count > kMaxProducts) {
        quantized_products(x, x_dtype, rows, k, wanted, kMaxProducts, threads);
        quantized_products(x, x_dtype, rows, k, wanted + kMaxProducts, count - kMaxProducts, threads);
        return;
    }
    if (rows == 0 || k == 0) return;
    const QuantizedRows input = quantized(x, x_dtype, rows, k, threads);
    Size pieces = 0, first[kMaxProducts + 1], chunk[kMaxProducts];
    const float* biases[kMaxProducts];
    biases_f32(wanted, count, biases);
    QuantizedLinear jobs[kMaxProducts];
    for (int i = 0; i < count; ++i) {
        const Product& one = wanted[i];
        jobs[i] = {input, static_cast<const uint8_t*>(one.weight), static_cast<const uint16_t*>(one.scales), one.n,
                   one.bits, biases[i], one.y, one.y_dtype};
        const Size groups = ceil_div(one.n, kGroup), bytes = input.blocks * (one.bits == 4 ? 288 : 544);
        // Pieces are long enough to be streamed, and numerous enough that a delayed thread can take fewer.
        chunk[i] = rows <= 8 ? ceil_div(65536, bytes) : 1;
        if (chunk[i] > ceil_div(groups, 4 * threads)) chunk[i] = ceil_div(groups, 4 * threads);
        first[i] = pieces;
        pieces += ceil_div(groups, chunk[i] < 1 ? 1 : chunk[i]);
    }
    first[count] = pieces;
    parallel_for(pieces, 1, threads, [&](Size begin, Size end) {
        uint8_t* work = static_cast<uint8_t*>(scratch(kWork, quantized_scratch(input.blocks)));
        int i = 0;
        for (Size piece = begin; piece < end; ++piece) {
            while (first[i + 1] <= piece) ++i;
            const Size groups = ceil_div(jobs[i].n, kGroup), group = (piece - first[i]) * chunk[i];
            isa->linear_quantized(jobs[i], group, group + chunk[i] < groups ? group + chunk[i] : groups, work);
        }
    });
}

void dense_products(const void* x, int x_dtype, Size rows, Size k, int w_dtype, const Product* wanted, int count,
                    int threads) {
    if (rows == 0) return;
    const bool in_pairs = isa->dot_bf16 && x_dtype == kBF16 && w_dtype == kBF16;
    const Size size = in_pairs ? 2 : 4;
    // Rows that are a multiple of 2 KiB apart compete for the same sets of the first-level cache.
    const bool competes = rows >= 16 && k * size % 2048 == 0;
    Size stride = k;
    if (k % 32 != 0 || (!in_pairs && x_dtype != kF32) || competes) {  // padded with zeros, widened
        stride = ceil_div(k, 32) * 32 + (competes ? 32 : 0);
        char* copy = static_cast<char*>(scratch(kInputs, rows * stride * size));
        parallel_for(rows, 8, threads, [&](Size begin, Size end) {
            for (Size t = begin; t < end; ++t) {
                char* row = copy + t * stride * size;
                const char* from = static_cast<const char*>(x) + t * k * bytes_of(x_dtype);
                if (in_pairs) {
                    std::memcpy(row, from, size_t(k) * 2);
                } else {
                    isa->to_f32(from, x_dtype, reinterpret_cast<float*>(row), k);
                }
                std::memset(row + k * size, 0, size_t((stride - k) * size));
            }
        });
        x = copy;
        if (!in_pairs) x_dtype = kF32;
    }
    Size first[kMaxProducts + 1] = {};
    const float* biases[kMaxProducts];
    biases_f32(wanted, count, biases);
    DenseLinear jobs[kMaxProducts];
    Size columns = 0;
    for (int i = 0; i < count; ++i) columns += wanted[i].n;
    const Size height = columns < 4 * kDenseRows * threads ? kDenseRows / 2 : kDenseRows;  // of a piece of work
    for (int i = 0; i < count; ++i) {
        const Product& one = wanted[i];
        jobs[i] = {x, x_dtype, rows, k, stride, one.weight, w_dtype, one.n, biases[i], one.y, one.y_dtype};
        first[i + 1] = first[i] + ceil_div(one.n, height);
    }
    parallel_for(first[count], 1, threads, [&](Size begin, Size end) {
        float* work = static_cast<float*>(scratch(kWork, dense_scratch()));
        int i = 0;
        for (Size piece = begin; piece < end; ++piece) {
            while (first[i + 1] <= piece) ++i;
            const Size n = (piece - first[i]) * height;
            isa->linear_dense(jobs[i], n, n + height < jobs[i].n ? n + height : jobs[i].n, work);
        }
    });
}

void attend(const Attention& job, int threads) {
    Size pieces = 0, limit = kQueryRows;
    for (;; limit /= 2) {  // use smaller pieces if there are too few for all threads
        pieces = 0;
        for (Size r = 0; r < job.sequences; ++r) pieces += PiecesOf(job, r, limit).count();
        if (limit <= 4 || pieces >= threads) break;
    }
    Size* first = static_cast<Size*>(scratch(kInputs, (job.sequences + 1) * Size(sizeof(Size))));
    first[0] = 0;
    for (Size r = 0; r < job.sequences; ++r) first[r + 1] = first[r] + PiecesOf(job, r, limit).count();
    parallel_for(pieces, 1, threads, [&](Size begin, Size end) {
        float* work = static_cast<float*>(scratch(kWork, attention_scratch(job.width, job.value_width)));
        Size r = 0;
        for (Size piece = begin; piece < end; ++piece) {
            while (first[r + 1] <= piece) ++r;
            isa->attention(job, PiecesOf(job, r, limit).at(piece - first[r]), work);
        }
    });
}

}  // namespace llmctl
