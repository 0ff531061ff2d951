#include "work.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace llmctl {

const Isa* isa = nullptr;

namespace {

// Convert the biases of several products to float32. They are short, so this is done in every call.
std::vector<const float*> biases_f32(const std::vector<const Product*>& wanted) {
    Size size = 0;
    for (const Product* one : wanted) size += one->bias ? one->n : 0;
    float* place = static_cast<float*>(scratch(kBias, size * 4));
    std::vector<const float*> found;
    for (const Product* one : wanted) {
        if (one->bias == nullptr || one->bias_dtype == kF32) {
            found.push_back(static_cast<const float*>(one->bias));
            continue;
        }
        isa->to_f32(one->bias, one->bias_dtype, place, one->n);
        found.push_back(place);
        place += one->n;
    }
    return found;
}

// Several inputs with rows of k elements, one after the other.
struct Inputs {
    std::vector<const void*> x;
    std::vector<Size> first{0};  // the first row of each among all rows, then the number of rows

    void add(const void* one, Size rows) {
        x.push_back(one);
        first.push_back(first.back() + rows);
    }
    Size rows(size_t input) const { return first[input + 1] - first[input]; }
    Size most_rows() const {
        Size most = 0;
        for (size_t i = 0; i < x.size(); ++i) most = rows(i) > most ? rows(i) : most;
        return most;
    }
    size_t of(Size row) const { return size_t(std::upper_bound(first.begin(), first.end(), row) - first.begin()) - 1; }
};

std::vector<QuantizedRows> quantized(const Inputs& inputs, int dtype, Size k, int threads) {
    const Size rows = inputs.first.back(), blocks = ceil_div(k, kBlock), parts = rows * blocks;
    char* memory = static_cast<char*>(scratch(kInputs, parts * (kBlock + 8)));
    std::vector<QuantizedRows> found;
    for (size_t i = 0; i < inputs.x.size(); ++i) {
        const Size at = inputs.first[i] * blocks;
        found.push_back({inputs.rows(i), k, blocks, isa->query_tile, reinterpret_cast<int8_t*>(memory) + at * kBlock,
                         reinterpret_cast<float*>(memory + parts * kBlock) + at,
                         reinterpret_cast<int32_t*>(memory + parts * (kBlock + 4)) + at});
    }
    parallel_for(rows, 16, threads, [&](Size begin, Size end) {
        for (size_t i = inputs.of(begin); begin < end; ++i) {
            const Size last = end < inputs.first[i + 1] ? end : inputs.first[i + 1];
            isa->quantize_rows(inputs.x[i], dtype, found[i], begin - inputs.first[i], last - inputs.first[i]);
            begin = last;
        }
    });
    return found;
}

// Pieces of several jobs, numbered through. Call `function(job, piece of the job)` for each, on several threads.
template <class Function>
void each_piece(const std::vector<Size>& counts, int threads, const Function& function) {
    std::vector<Size> first{0};
    for (const Size count : counts) first.push_back(first.back() + count);
    parallel_for(first.back(), 1, threads, [&](Size begin, Size end) {
        size_t job = size_t(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
        for (Size piece = begin; piece < end; ++piece) {
            while (first[job + 1] <= piece) ++job;
            function(job, piece - first[job]);
        }
    });
}

void multiply_quantized(const std::vector<QuantizedLinear>& jobs, int threads) {
    std::vector<Size> chunks, counts;
    for (const QuantizedLinear& job : jobs) {
        const Size groups = ceil_div(job.n, kGroup), bytes = job.x.blocks * (job.bits == 4 ? 288 : 544);
        // Pieces are long enough to be streamed, and numerous enough that a delayed thread can take fewer.
        Size chunk = job.x.rows <= 8 ? ceil_div(65536, bytes) : 1;
        if (chunk > ceil_div(groups, 4 * threads)) chunk = ceil_div(groups, 4 * threads);
        chunks.push_back(chunk);
        counts.push_back(ceil_div(groups, chunk));
    }
    each_piece(counts, threads, [&](size_t i, Size piece) {
        uint8_t* work = static_cast<uint8_t*>(scratch(kWork, quantized_scratch(jobs[i].x.blocks)));
        const Size groups = ceil_div(jobs[i].n, kGroup), group = piece * chunks[i];
        isa->linear_quantized(jobs[i], group, group + chunks[i] < groups ? group + chunks[i] : groups, work);
    });
}

// Copy row `row` of an input [rows][k] of bfloat16 to its tile, padded with zeros to `stride` elements.
void pack_row_for_tiles(const char* x, Size row, Size rows, Size k, Size stride, char* to) {
    const Size first = row / kTileColumns * kTileColumns, columns = std::min(rows - first, kTileColumns);
    char* place = to + first * stride * 2 + (row - first) * 4;
    const char* from = x + row * k * 2;
    for (Size j = 0; j < stride; j += 2, place += columns * 4) {
        uint16_t pair[2] = {};
        if (j < k) std::memcpy(pair, from + j * 2, j + 1 < k ? 4 : 2);
        std::memcpy(place, pair, 4);
    }
}

// The inputs as the dense kernels read them: rows padded with zeros to a multiple of 32, in float32 or, for the dot product of
// bfloat16, as they are or in tiles. Inputs that already are so are not copied.
struct DenseInputs {
    std::vector<const void*> x;
    int dtype;
    Size stride;
};

DenseInputs padded_inputs(const Inputs& inputs, int dtype, Size k, int w_dtype, int threads) {
    const bool in_pairs = isa->dot_bf16 && dtype == kBF16 && w_dtype == kBF16;
    const bool in_tiles = in_pairs && isa->has_tiles;
    const Size size = in_pairs ? 2 : 4, rows = inputs.first.back();
    // Rows that are a multiple of 2 KiB apart compete for the same sets of the first-level cache.
    const bool competes = !in_tiles && inputs.most_rows() >= 16 && k * size % 2048 == 0;
    if (k % 32 == 0 && (in_pairs || dtype == kF32) && !competes && !in_tiles) return {inputs.x, dtype, k};
    const Size stride = ceil_div(k, 32) * 32 + (competes ? 32 : 0);
    char* copy = static_cast<char*>(scratch(kInputs, rows * stride * size));
    parallel_for(rows, 8, threads, [&](Size begin, Size end) {
        for (Size t = begin; t < end; ++t) {
            const size_t i = inputs.of(t);
            if (in_tiles) {
                pack_row_for_tiles(static_cast<const char*>(inputs.x[i]), t - inputs.first[i], inputs.rows(i), k, stride,
                                   copy + inputs.first[i] * stride * 2);
                continue;
            }
            char* row = copy + t * stride * size;
            const char* from = static_cast<const char*>(inputs.x[i]) + (t - inputs.first[i]) * k * bytes_of(dtype);
            if (in_pairs) {
                std::memcpy(row, from, size_t(k) * 2);
            } else {
                isa->to_f32(from, dtype, reinterpret_cast<float*>(row), k);
            }
            std::memset(row + k * size, 0, size_t((stride - k) * size));
        }
    });
    DenseInputs found{{}, in_pairs ? dtype : int(kF32), stride};
    for (size_t i = 0; i < inputs.x.size(); ++i) found.x.push_back(copy + inputs.first[i] * stride * size);
    return found;
}

void multiply_dense(const std::vector<DenseLinear>& jobs, int threads) {
    std::vector<Size> counts;
    Size columns = 0;
    for (const DenseLinear& job : jobs) columns += job.n;
    const Size height = columns < 4 * kDenseRows * threads ? kDenseRows / 2 : kDenseRows;  // of a piece of work
    for (const DenseLinear& job : jobs) counts.push_back(ceil_div(job.n, height));
    each_piece(counts, threads, [&](size_t i, Size piece) {
        float* work = static_cast<float*>(scratch(kWork, dense_scratch()));
        const Size n = piece * height;
        isa->linear_dense(jobs[i], n, n + height < jobs[i].n ? n + height : jobs[i].n, work);
    });
}

// Products with weights of one type; product i has the input `input_of[i]`.
void multiply(const Inputs& inputs, const std::vector<size_t>& input_of, const std::vector<const Product*>& wanted, int x_dtype,
              Size k, int w_dtype, int threads) {
    if (inputs.first.back() == 0 || wanted.empty()) return;
    const std::vector<const float*> biases = biases_f32(wanted);
    if (wanted[0]->bits) {
        if (k == 0) return;
        const std::vector<QuantizedRows> rows = quantized(inputs, x_dtype, k, threads);
        std::vector<QuantizedLinear> jobs;
        for (size_t i = 0; i < wanted.size(); ++i) {
            const Product& one = *wanted[i];
            jobs.push_back({rows[input_of[i]], static_cast<const uint8_t*>(one.weight),
                            one.scales, one.n, one.bits, one.encoding, biases[i], one.y, one.y_dtype});
        }
        multiply_quantized(jobs, threads);
        return;
    }
    const DenseInputs x = padded_inputs(inputs, x_dtype, k, w_dtype, threads);
    std::vector<DenseLinear> jobs;
    for (size_t i = 0; i < wanted.size(); ++i) {
        const Product& one = *wanted[i];
        jobs.push_back({x.x[input_of[i]], x.dtype, inputs.rows(input_of[i]), k, x.stride, one.weight, w_dtype, one.n,
                        biases[i], one.y, one.y_dtype});
    }
    multiply_dense(jobs, threads);
}

void multiply_shared(const void* x, int x_dtype, Size rows, Size k, const Product* wanted, int count, int w_dtype, int threads) {
    Inputs inputs;
    inputs.add(x, rows);
    std::vector<const Product*> products;
    for (int i = 0; i < count; ++i) products.push_back(wanted + i);
    multiply(inputs, std::vector<size_t>(products.size()), products, x_dtype, k, w_dtype, threads);
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
    multiply_shared(x, x_dtype, rows, k, wanted, count, kF32, threads);
}

void dense_products(const void* x, int x_dtype, Size rows, Size k, int w_dtype, const Product* wanted, int count,
                    int threads) {
    multiply_shared(x, x_dtype, rows, k, wanted, count, w_dtype, threads);
}

void separate_products(const InputProduct* wanted, int count, int x_dtype, Size k, int w_dtype, int threads) {
    Inputs inputs;
    std::vector<const Product*> products;
    std::vector<size_t> input_of;
    for (int i = 0; i < count; ++i) {
        inputs.add(wanted[i].x, wanted[i].rows);
        products.push_back(&wanted[i].product);
        input_of.push_back(size_t(i));
    }
    multiply(inputs, input_of, products, x_dtype, k, w_dtype, threads);
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
