// The functions that Python calls, with plain pointers. They check nothing; cpu/operations.py checks the arguments.
#include <cstring>

#include "convert.h"
#include "cpu.h"
#include "experts.h"
#include "isas.h"  // made by CMake: the instruction sets that were compiled, best first
#include "kernels.h"
#include "mxfp4.h"
#include "program.h"
#include "threads.h"
#include "work.h"

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

}  // namespace

// Increase it with every change of a function below, of a struct, or of the weight layout: Python refuses other versions.
LLMCTL_EXPORT int llmctl_version() { return 13; }

// The sizes of the structs that Python fills. Python compares them with those of ctypes when it loads the library.
LLMCTL_EXPORT Size llmctl_operation_size() { return Size(sizeof(Operation)); }
LLMCTL_EXPORT Size llmctl_pass_size() { return Size(sizeof(Pass)); }

// Choose the kernels with this name, or the best ones if `name` is empty. Return their name, or null if they were not
// built or cannot run here.
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
LLMCTL_EXPORT const int8_t* llmctl_code_e2m1() { return kCodeE2M1; }

LLMCTL_EXPORT void llmctl_linear_quantized(int bits, int encoding, const void* x, int x_dtype, Size rows, Size k,
                                           const void* weight, const void* scales, Size n, const void* bias,
                                           int bias_dtype, void* y, int y_dtype, int threads) {
    const Product one{bits, encoding, n, weight, scales, bias, bias_dtype, y, y_dtype};
    if (n > 0) quantized_products(x, x_dtype, rows, k, &one, 1, threads);
}

LLMCTL_EXPORT void llmctl_linear(const void* x, int x_dtype, Size rows, Size k, const void* w, int w_dtype,
                                 Size n, const void* bias, int bias_dtype, void* y, int y_dtype, int threads) {
    const Product one{0, 0, n, w, nullptr, bias, bias_dtype, y, y_dtype};
    dense_products(x, x_dtype, rows, k, w_dtype, &one, 1, threads);
}

LLMCTL_EXPORT void llmctl_quantize(int bits, const void* w, int dtype, Size n, Size k, void* weight,
                                   void* scales, int threads) {
    const WeightToQuantize job{w, dtype, Size(n), Size(k), bits, static_cast<uint8_t*>(weight),
                               static_cast<uint16_t*>(scales)};
    parallel_for(ceil_div(n, kGroup), 1, threads,
                 [&](Size begin, Size end) { isa->quantize_weight(job, begin, end); });
}

// See mxfp4.h.
LLMCTL_EXPORT void llmctl_pack_mxfp4(const void* pairs, const void* exponents, Size n, Size blocks, void* codes, void* scales,
                                     int threads) {
    pack_mxfp4(static_cast<const uint8_t*>(pairs), static_cast<const uint8_t*>(exponents), n, blocks,
               static_cast<uint8_t*>(codes), static_cast<uint8_t*>(scales), threads);
}

// `sizes`: sequences, max_blocks, block_size, query_heads, kv_heads, width, value_width, then the strides of keys and of
// values (block, slot, head), in elements, then the window and the chunk (0: none). `sinks`: [query_heads] or null.
LLMCTL_EXPORT void llmctl_attention(const void* q, int q_dtype, const void* k, const void* v, int kv_dtype, void* out,
                                    const int32_t* block_table, const int32_t* query_start, const int32_t* kv_length,
                                    const Size* sizes, float scale, float softcap, const float* sinks,
                                    const int32_t* visible_end, int threads) {
    const Attention job{q, q_dtype, k, v, kv_dtype, out, block_table, query_start, kv_length,
                  Size(sizes[0]), Size(sizes[1]), Size(sizes[2]), Size(sizes[3]), Size(sizes[4]), Size(sizes[5]),
                  Size(sizes[6]), Size(sizes[7]), Size(sizes[8]), Size(sizes[9]), Size(sizes[10]), Size(sizes[11]),
                  Size(sizes[12]), scale, softcap, Size(sizes[13]), Size(sizes[14]), sinks, visible_end};
    attend(job, threads);
}

// The RMS norm of x [rows][width], as the operation of a program.
LLMCTL_EXPORT void llmctl_rms_norm(const void* x, int dtype, Size rows, Size width, const void* weight, int weight_dtype,
                                   const void* bias, int bias_dtype, int flavour, float epsilon, void* y, int threads) {
    Operation op{};
    op.norm_flavour = flavour, op.n = width, op.weight = weight, op.weight_dtype = weight_dtype, op.epsilon = epsilon;
    op.bias = bias, op.bias_dtype = bias_dtype;
    each_row(op, rows, threads, [&](Size row, float* work) {
        isa->rms_norm_row(op, dtype, advanced(x, dtype, row * width), advanced(y, dtype, row * width), work);
    });
}

// activation(gate) times up, as a kGatedActivation operation of a program: up is [rows][width], gate [rows][gate_width], each
// gate for an equal part of the row.
LLMCTL_EXPORT void llmctl_gated_activation(const void* gate, const void* up, int dtype, Size rows, Size width, Size gate_width,
                                           int activation, void* y, int threads) {
    Operation op{};
    op.activation = activation, op.n = width, op.k = gate_width == width ? 0 : gate_width;
    each_row(op, rows, threads, [&](Size row, float* work) {
        isa->gated_activation_row(op, dtype, advanced(gate, dtype, row * gate_width), advanced(up, dtype, row * width),
                                  advanced(y, dtype, row * width), work);
    });
}

// The activation of x [rows][width] that the operation describes, as a kActivation operation of a program.
LLMCTL_EXPORT void llmctl_activation(const Operation* op, const void* x, int dtype, Size rows, void* y, int threads) {
    each_row(*op, rows, threads, [&](Size row, float* work) {
        isa->activation_row(*op, dtype, advanced(x, dtype, row * op->n), advanced(y, dtype, row * op->n), work);
    });
}

// The top experts of every row of logits [rows][experts] and their weights, as a kRoute operation of a program.
LLMCTL_EXPORT void llmctl_route(const Operation* op, const void* logits, int dtype, Size rows, int32_t* top_experts,
                                float* top_weights, int threads) {
    each_row(*op, rows, threads, [&](Size row, float* work) {
        const void* from = advanced(logits, op->floats ? int(kF32) : dtype, row * op->experts);
        isa->route_row(*op, dtype, from, top_experts + row * op->top_k, top_weights + row * op->top_k, work);
    });
}

// The experts of every row of x [rows][op.n], as a kExperts operation of a program.
LLMCTL_EXPORT void llmctl_experts(const Operation* op, const void* x, int dtype, Size rows, const int32_t* top_experts,
                                  const float* top_weights, void* y, int threads) {
    const Size stride = op->n * bytes_of(dtype);
    compute_experts(*op, dtype, rows, static_cast<const char*>(x), stride, {top_experts, top_weights, op->top_k},
                    static_cast<char*>(y), stride, threads);
}

// A forward pass through a whole model: see program.h.
LLMCTL_EXPORT void llmctl_run_program(const Operation* ops, Size count, const Pass* pass) { run_program(ops, count, *pass); }
