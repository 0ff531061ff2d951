// The functions of one instruction set and their arguments. Plain data only: each instruction set is compiled with its own
// flags, and if such a file instantiated a template of the standard library, the linker could keep that copy for all files.
// Therefore files compiled with such flags must not include headers with templates.
#pragma once

#include <cstdint>

using Size = std::int64_t;

namespace llmctl {

enum Dtype : int { kF32 = 0, kBF16 = 1, kF16 = 2 };

// The encoding of weights in blocks of 32 with a scale each. cpu/structs.py has the same names.
enum Encoding : int {
    kLlmctl,  // 8 bits, or the sixteen values of kCode4; scales in float16
    kMxfp4,   // of the OCP's Microscaling formats: E2M1 numbers; scales are powers of two, stored as their exponents (E8M0)
};

constexpr Size kGroup = 16;   // interleaved output rows
constexpr Size kBlock = 32;   // inputs that share one scale
constexpr Size kKeyBlock = 64; // keys of one step of the online softmax, counted from position 0

inline Size ceil_div(Size a, Size b) { return (a + b - 1) / b; }

// Activations, quantised: tiles of `tile` rows (the last one may be smaller), inside a tile block by block, all rows of
// the block side by side.
struct QuantizedRows {
    Size rows, k, blocks, tile;
    int8_t* codes;      // [tile][block][row of the tile][32]
    float* scales;      // [tile][block][row of the tile]
    int32_t* offsets;   // the same shape: -128 times the sum of the block's codes
};

struct QuantizedLinear {
    QuantizedRows x;
    const uint8_t* weight;   // [group][block][512 bytes, or 256 where 4 bits]
    const void* scales;      // [group][block][16]: float16, or bytes in MXFP4
    Size n;
    int bits, encoding;
    const float* bias;  // [n] or null
    void* y;            // [rows][n]
    int y_dtype;
};

constexpr Size kTileColumns = 16, kTileInputs = 32;  // rows of x and inputs in a tile of dense_tiles.h

// y = x @ w^T. `x` has the type `x_dtype` (float32 or bfloat16), with rows padded with zeros to `x_stride`. For tiles, x is
// [row / kTileColumns][pair of inputs][row of the tile][2]; the last tile has fewer rows.
struct DenseLinear {
    const void* x;
    int x_dtype;
    Size rows, k, x_stride;
    const void* w;  // [n][k]
    int w_dtype;
    Size n;
    const float* bias;
    void* y;
    int y_dtype;
};

struct Attention {
    const void* q;  // [tokens][query_heads][width]
    int q_dtype;
    const void* k;  // [blocks][block_size][kv_heads][width], strides in elements
    const void* v;
    int kv_dtype;
    void* out;  // [tokens][query_heads][value_width], of q's dtype
    const int32_t* block_table;  // [sequences][max_blocks]
    const int32_t* query_start;  // [sequences + 1]
    const int32_t* kv_length;    // [sequences]
    Size sequences, max_blocks, block_size, query_heads, kv_heads, width, value_width;
    Size k_block_stride, k_slot_stride, k_head_stride;
    Size v_block_stride, v_slot_stride, v_head_stride;
    float scale, softcap;  // softcap 0: none
    Size window, chunk;    // 0: none; with chunks, a token sees the earlier ones of its own chunk only
    const float* sinks;    // [query_heads], or null: a logit in the softmax of every query that takes no value
    const int32_t* visible_end;  // [tokens], the end of the tokens that each one sees; null if that is the token itself
};

// Some rows of some key heads of one sequence; rows times heads do not exceed kQueryRows.
struct AttentionPiece {
    Size sequence, head_begin, head_end, row_begin, row_end;
};

struct WeightToQuantize {
    const void* w;  // [n][k]
    int dtype;
    Size n, k;
    int bits;
    uint8_t* weight;
    uint16_t* scales;
};

// The new tokens of one sequence in an operation with a state. Rows are `..._stride` elements apart.
struct Recurrence {
    Size tokens;
    bool begins;  // the state is taken as zeros
    const void *input, *other, *step, *beta;
    void* output;
    void* state;
};

// One operation of a program (program.cpp), or the part of it that a row needs. cpu/structs.py has the same fields in the
// same order; when the library is loaded, llmctl_operation_size() is compared with the size there.
enum OperationKind : Size {
    kEmbedding,
    kRmsNorm,
    kLinear,
    kPrepareHeads,  // RMS norm and RoPE of each head, into a buffer or into the KV cache
    kAttention,
    kGatedActivation,
    kAdd,
    kGatherLast,
    kRoute,
    kExperts,
    kScale,       // x times a constant
    kLinearHeads, // each head of x times a weight of its own
    kCausalConv,  // a convolution over the tokens of each channel, with a state of kernel_size - 1 rows
    kDeltaRule,   // the gated delta rule, with a state [heads][state_size][padded head_size] in float32
    kSelectiveScan, // of Mamba 2, with the same state
    kGatedNorm,
    kActivation,  // without a gate
    kAddMedia,    // add the media of the pass to the hidden states of their tokens
};
enum NormFlavour : Size {
    kNormThenWeight,  // Llama: rounded, then multiplied by the weights
    kOnePlusWeight,   // Gemma: multiplied by 1 + weights, rounded once
    kWeightThenRound, // OLMo, Gemma 4: multiplied by the weights, rounded once
    kNoWeight,
    kLayerNorm,       // Cohere: the mean is subtracted first; then as kWeightThenRound; a bias may be added before rounding
};
// The elements of a head that RoPE rotates together, and the order of its table.
enum RopeLayout : Size {
    kHalves,         // i and i + half, as in rotate_half; the table has an entry for each element
    kPairs,          // 2 i and 2 i + 1, likewise
    kPairsOfHalves,  // 2 i and 2 i + 1; entry i of the table is for both
};
// The scores by which kRoute chooses experts, which are also their weights. A correction is added for the choice only.
enum Scoring : Size {
    kSoftmax,       // over all experts
    kTopSoftmax,    // over the chosen ones
    kSigmoidScores,
    kSparseMixer,
    kTopSigmoid,    // the largest logits; their sigmoids are the weights
};
enum Activation : Size { kSilu, kGeluTanh, kSigmoid, kIdentity, kClampedSwiglu, kReluSquared, kGelu, kXielu };
enum Destination : Size { kBuffer, kLogits, kKeys, kValues, kFloats };  // kFloats: a buffer, in float32
struct Operation {
    Size kind;
    Size per_sequence;                              // one row per sequence instead of one per token
    Size input, input_offset, input_stride;         // a buffer, an offset in its rows, elements from row to row
    Size other, other_offset, other_stride;         // the second input: kAdd, kGatedActivation (up), kExperts (routes)
    Size destination, output;                       // `output` is the buffer's number if the destination is kBuffer
    Size n;                                         // elements of an output row
    Size k;  // kLinear, kLinearHeads: elements of an input row or head; kGatedActivation: the number of gates, 0 for n
    Size bits;                                      // of the weight: 4, 8, or 0 for one that is not quantised
    Size encoding;                                  // of a quantised weight
    Size same_input;                                // kLinear: has the same input as the previous operation
    Size norm_flavour, activation;
    Size heads, kv_heads, head_size, layer, window, chunk; // window, chunk 0: none; kGatedNorm: head_size 0 for no norm
    Size head_stride, output_head_stride;           // kPrepareHeads, kLinearHeads: elements from head to head
    Size output_offset, output_stride;              // likewise, kScale: place in the output's rows
    Size norm_last, gate_last;                      // kPrepareHeads: the norm follows RoPE; kGatedNorm: the gate follows the norm
    Size value_size, values_in_keys;                // kAttention: elements of a value; values are the first ones of the keys
    Size state, kernel_size, state_size;            // of operations with a state: its number in the pass; elements of a key
    Size step, step_offset, step_stride;            // kDeltaRule, kSelectiveScan: the steps [heads]
    Size beta, beta_offset, beta_stride;            // kDeltaRule [heads]
    Size rope, rotary_size;                         // index of the RoPE in the pass; elements of a head that it rotates
    Size rope_layout, rope_in_float32;              // in_float32: rounded once instead of after every step
    Size token_factor;                              // kPrepareHeads: 1 + its index in the pass; 0: none
    Size experts, top_k, normalize_top_k, round_top_k, intermediate_size;
    Size scoring, groups, top_groups, group_best;   // kRoute; the score of a group is the sum of its `group_best` best
    Size floats;                                    // kRoute: the logits are float32 whatever the pass's type
    Size interleaved;                               // kExperts: gate and up alternate in gate_up_proj's outputs
    Size ungated, weighs_inputs;                    // kExperts: up_proj only; weights multiply the inputs, not the outputs
    Size media;                                     // kEmbedding, kAddMedia: 1 + the number of the pass's media; 0: none
    const void* weight;                             // kExperts: gate_up_proj, expert after expert, codes before scales
    Size weight_dtype;
    const void* scales;
    const void* bias;                               // kAttention: sinks; kRoute: correction of the scores
    Size bias_dtype;
    const void* down_weight;                        // kExperts: down_proj, likewise
    const void *a_log, *step_bias, *skip;           // kDeltaRule, kSelectiveScan: parameters [heads]; kRoute: skip [experts],
                                                    // factors of the weights
    Size head_dtype;                                // of these parameters
    const void* down_bias;                          // kExperts
    float epsilon, scale, softcap;                  // kRoute: least sum of weights, or 2 * jitter; softcap of scores, 0: none
    float step_low, step_high;                      // kSelectiveScan: limits of a step
    float alpha, limit;                             // kClampedSwiglu; kXielu: alpha
    float negative_alpha, slope;                    // kXielu
};

struct Isa {
    const char* name;
    Size query_tile;   // rows of x that a quantised kernel takes at once
    bool dot_bf16;     // the product of bfloat16 x and bfloat16 w needs no float32 copy of x
    bool has_tiles;    // this product takes x in tiles (DenseLinear)
    void (*quantize_rows)(const void* x, int dtype, const QuantizedRows& to, Size begin, Size end);
    void (*linear_quantized)(const QuantizedLinear& job, Size group_begin, Size group_end, uint8_t* scratch);
    void (*linear_dense)(const DenseLinear& job, Size n_begin, Size n_end, float* scratch);
    void (*attention)(const Attention& job, const AttentionPiece& piece, float* scratch);
    void (*quantize_weight)(const WeightToQuantize& job, Size group_begin, Size group_end);
    void (*to_f32)(const void* from, int dtype, float* to, Size count);
    void (*from_f32)(const float* from, void* to, int dtype, Size count);
    void (*rms_norm_row)(const Operation& op, int dtype, const void* in, void* out, float* work);
    void (*prepare_heads_row)(const Operation& op, int dtype, const void* in, const float* rope_cos, const float* rope_sin,
                              float factor, void* out, float* work);
    void (*gated_activation_row)(const Operation& op, int dtype, const void* gate, const void* up, void* out, float* work);
    void (*activation_row)(const Operation& op, int dtype, const void* in, void* out, float* work);
    void (*route_row)(const Operation& op, int dtype, const void* logits, int32_t* top_experts, float* top_weights,
                      float* work);
    void (*add_row)(const Operation& op, int dtype, const void* a, const void* b, void* out, float* work);
    void (*scale_row)(const Operation& op, int dtype, const void* in, void* out, float* work);
    void (*embedding_row)(const Operation& op, int dtype, Size id, void* out, float* work);
    void (*causal_conv)(const Operation& op, int dtype, const Recurrence& sequence, Size begin, Size end, float* work);
    void (*delta_rule)(const Operation& op, int dtype, const Recurrence& sequence, Size head, float* work);
    void (*selective_scan)(const Operation& op, int dtype, const Recurrence& sequence, Size head, float* work);
    void (*gated_norm_row)(const Operation& op, int dtype, const void* x, const void* gate, void* out, float* work);
};

// Scratch memory that one thread needs, in bytes.
inline Size quantized_scratch(Size blocks) { return blocks * 512 + 64; }
constexpr Size kDenseRows = 64;    // rows of w in one piece of work, at most
constexpr Size kDenseTokens = 256; // rows of x that stay in the second-level cache meanwhile
constexpr Size kDenseScratch = 32768; // bytes of reordered rows of w, which stay in the first-level cache
inline Size dense_scratch() { return kDenseRows * kDenseTokens * 4 + kDenseScratch + 64; }
constexpr Size kQueryRows = 64;    // (query, query head) pairs in one piece of attention
inline Size padded(Size n) { return ceil_div(n, 16) * 16; }
inline Size attention_scratch(Size width, Size value_width) {
    const Size w = padded(width), v = padded(value_width);
    return (kQueryRows * (w + v + kKeyBlock + 2) + kKeyBlock * (w + v)) * 4 + 256;
}

constexpr Size kConvChannels = 256;   // channels in one piece of a convolution
constexpr Size kRecurrentTokens = 16; // tokens of a recurrent operation that are converted to float32 together
inline Size causal_conv_scratch(Size kernel_size) { return (2 * kernel_size + kRecurrentTokens + 1) * kConvChannels * 4; }

inline Size recurrence_scratch(Size state_size, Size head_size) {
    return (kRecurrentTokens * (2 * state_size + 3 * padded(head_size)) + 3 * padded(head_size)) * 4;
}

inline Size row_scratch(const Operation& op) {
    return (2 * op.n + 4 * op.experts + 4 * op.head_size + 2 * op.rotary_size + 1024) * 4;
}

// The 4-bit code: the value of each nibble, to be multiplied by the block's scale. quantize.h explains its derivation.
extern const int8_t kCode4[16];
// The values of E2M1, the 4-bit floating-point numbers of MXFP4, times two.
extern const int8_t kCodeE2M1[16];

// Bytes of the codes and of the scales of a quantised weight [n][k].
inline Size code_bytes(Size n, Size k, Size bits) { return ceil_div(n, kGroup) * ceil_div(k, kBlock) * 64 * bits; }
inline Size scale_bytes(Size n, Size k, Size encoding) {
    return ceil_div(n, kGroup) * ceil_div(k, kBlock) * kGroup * (encoding == kMxfp4 ? 1 : 2);
}

}  // namespace llmctl
