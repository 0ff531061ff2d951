// The functions that Python calls: plain pointers, no checks (the wrapper makes them).
#include <cstring>

#include "cpu.h"
#include "isas.h"  // made by CMake: the instruction sets that were compiled, best first
#include "kernels.h"
#include "threads.h"

#ifdef _WIN32
#define LLMCTL_EXPORT extern "C" __declspec(dllexport)
#else
#define LLMCTL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define LLMCTL_DECLARE(name) extern const llmctl::Isa llmctl_isa_##name;
#define LLMCTL_LIST(name) &llmctl_isa_##name,
LLMCTL_EACH_ISA(LLMCTL_DECLARE)

using namespace llmctl;

namespace {

const Isa* const kIsas[] = {LLMCTL_EACH_ISA(LLMCTL_LIST)};
const Isa* isa = nullptr;

Size bytes_of(int dtype) { return dtype == kF32 ? 4 : 2; }

// A bias is short: it is brought to float32 once a call.
const float* bias_f32(const void* bias, int dtype, Size n) {
    if (bias == nullptr || dtype == kF32) return static_cast<const float*>(bias);
    float* to = static_cast<float*>(scratch(kBias, n * 4));
    isa->to_f32(bias, dtype, to, n);
    return to;
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

// How the attention of one sequence is cut: rows first, and several heads where the rows are few.
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

// Changes whenever the functions below or the layout of weights do: a library that was built before is not used.
LLMCTL_EXPORT int llmctl_version() { return 1; }

// Choose the kernels: those named, or the best ones where `name` is empty. Returns their name, or null where they were
// not built or cannot run here.
LLMCTL_EXPORT const char* llmctl_select(const char* name) {
    for (const Isa* one : kIsas) {
        if ((name[0] == '\0' || std::strcmp(name, one->name) == 0) && cpu_supports(one->name)) {
            isa = one;
            return one->name;
        }
    }
    return nullptr;
}

// The name of the n-th instruction set that was built and can run here, best first; null after the last one.
LLMCTL_EXPORT const char* llmctl_usable(int n) {
    for (const Isa* one : kIsas) {
        if (cpu_supports(one->name) && n-- == 0) return one->name;
    }
    return nullptr;
}

LLMCTL_EXPORT void llmctl_use_region(void* start) { use_region(reinterpret_cast<StartRegion>(start)); }

LLMCTL_EXPORT const int8_t* llmctl_code4() { return kCode4; }

LLMCTL_EXPORT void llmctl_linear_quantized(int bits, const void* x, int x_dtype, Size rows, Size k,
                                           const void* weight, const void* scales, Size n, const void* bias,
                                           int bias_dtype, void* y, int y_dtype, int threads) {
    if (rows == 0 || n == 0) return;
    const QuantizedLinear job{quantized(x, x_dtype, rows, k, threads), static_cast<const uint8_t*>(weight),
                              static_cast<const uint16_t*>(scales), Size(n), bits, bias_f32(bias, bias_dtype, n), y,
                              y_dtype};
    const Size groups = ceil_div(n, kGroup), bytes = job.x.blocks * (bits == 4 ? 288 : 544);
    // Pieces that are long enough to be streamed, and enough of them that a thread which was held up does less.
    Size chunk = rows <= 8 ? ceil_div(65536, bytes) : 1;
    if (chunk > ceil_div(groups, 4 * threads)) chunk = ceil_div(groups, 4 * threads);
    parallel_for(groups, chunk, threads, [&](Size begin, Size end) {
        uint8_t* work = static_cast<uint8_t*>(scratch(kWork, quantized_scratch(job.x.blocks)));
        isa->linear_quantized(job, begin, end, work);
    });
}

LLMCTL_EXPORT void llmctl_linear(const void* x, int x_dtype, Size rows, Size k, const void* w, int w_dtype,
                                 Size n, const void* bias, int bias_dtype, void* y, int y_dtype, int threads) {
    if (rows == 0 || n == 0) return;
    DenseLinear job{x, x_dtype, Size(rows), Size(k), Size(k), w, w_dtype, Size(n), bias_f32(bias, bias_dtype, n), y, y_dtype};
    const bool in_pairs = isa->dot_bf16 && x_dtype == kBF16 && w_dtype == kBF16;
    if (k % 32 != 0 || (!in_pairs && x_dtype != kF32)) {  // padded with zeros, widened
        job.x_stride = ceil_div(k, 32) * 32;
        const Size size = in_pairs ? 2 : 4;
        char* copy = static_cast<char*>(scratch(kInputs, rows * job.x_stride * size));
        parallel_for(rows, 8, threads, [&](Size begin, Size end) {
            for (Size t = begin; t < end; ++t) {
                char* row = copy + t * job.x_stride * size;
                const char* from = static_cast<const char*>(x) + t * k * bytes_of(x_dtype);
                if (in_pairs) {
                    std::memcpy(row, from, size_t(k) * 2);
                } else {
                    isa->to_f32(from, x_dtype, reinterpret_cast<float*>(row), k);
                }
                std::memset(row + k * size, 0, size_t((job.x_stride - k) * size));
            }
        });
        job.x = copy;
        if (!in_pairs) job.x_dtype = kF32;
    }
    const Size pieces = ceil_div(n, kDenseRows);
    parallel_for(pieces, 1, threads, [&](Size begin, Size end) {
        float* work = static_cast<float*>(scratch(kWork, dense_scratch()));
        isa->linear_dense(job, begin * kDenseRows, end * kDenseRows < n ? end * kDenseRows : Size(n), work);
    });
}

LLMCTL_EXPORT void llmctl_quantize(int bits, const void* w, int dtype, Size n, Size k, void* weight,
                                   void* scales, int threads) {
    const WeightToQuantize job{w, dtype, Size(n), Size(k), bits, static_cast<uint8_t*>(weight),
                               static_cast<uint16_t*>(scales)};
    parallel_for(ceil_div(n, kGroup), 1, threads,
                 [&](Size begin, Size end) { isa->quantize_weight(job, begin, end); });
}

// `sizes`: sequences, max_blocks, block_size, query_heads, kv_heads, width, value_width, then the strides of keys and of
// values (block, slot, head), in elements, then the window (0: none).
LLMCTL_EXPORT void llmctl_attention(const void* q, int q_dtype, const void* k, const void* v, int kv_dtype, void* out,
                                    const int32_t* block_table, const int32_t* query_start, const int32_t* kv_length,
                                    const Size* sizes, float scale, float softcap, int threads) {
    Attention job{q, q_dtype, k, v, kv_dtype, out, block_table, query_start, kv_length,
                  Size(sizes[0]), Size(sizes[1]), Size(sizes[2]), Size(sizes[3]), Size(sizes[4]), Size(sizes[5]),
                  Size(sizes[6]), Size(sizes[7]), Size(sizes[8]), Size(sizes[9]), Size(sizes[10]), Size(sizes[11]),
                  Size(sizes[12]), scale, softcap, Size(sizes[13])};
    Size pieces = 0, limit = kQueryRows;
    for (;; limit /= 2) {  // few pieces are cut smaller
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
