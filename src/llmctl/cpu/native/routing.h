// The choice of each token's experts in a mixture of experts.
#pragma once

#include "rows.h"

namespace {

// Put the `count` largest of the numbers, the first of equal ones first, into `to`.
inline void top_indices(float* numbers, Size size, Size count, int32_t* to) {
    for (Size c = 0; c < count; ++c) {
        Size best = 0;
        for (Size i = 1; i < size; ++i) best = numbers[i] > numbers[best] ? i : best;
        to[c] = static_cast<int32_t>(best);
        numbers[best] = -as_float(0x7f800000u);
    }
}

inline float sigmoid_of(float x) {
    float lanes[Simd::kLanes];
    Simd::store(lanes, sigmoid(Simd::set(x)));
    return lanes[0];
}

inline float largest(const float* numbers, Size size) {
    float peak = numbers[0];
    for (Size i = 1; i < size; ++i) peak = numbers[i] > peak ? numbers[i] : peak;
    return peak;
}

// Replace numbers by exp(number - the largest one), and return their sum.
inline float exponentials(float* numbers, Size size) {
    const float peak = largest(numbers, size);
    float sum = 0.0f;
    for (Size i = 0; i < size; ++i) {
        float lanes[Simd::kLanes];
        Simd::store(lanes, exponential(Simd::set(numbers[i] - peak)));
        numbers[i] = lanes[0];
        sum += numbers[i];
    }
    return sum;
}

// Only experts of the best groups take part. The score of a group is its best one (DeepSeek-V2) or the sum of its two best (V3).
inline void keep_best_groups(const Operation& op, float* choice, float* work) {
    const Size size = op.experts / op.groups;
    for (Size g = 0; g < op.groups; ++g) {
        float first = -as_float(0x7f800000u), second = first;
        for (Size i = 0; i < size; ++i) {
            const float v = choice[g * size + i];
            if (v > first) {
                second = first;
                first = v;
            } else if (v > second) {
                second = v;
            }
        }
        work[g] = op.group_best == 1 ? first : first + second;
    }
    for (Size dropped = op.groups - op.top_groups; dropped > 0; --dropped) {
        Size worst = 0;  // the last one of equal ones
        for (Size g = 1; g < op.groups; ++g) worst = work[g] <= work[worst] ? g : worst;
        work[worst] = as_float(0x7f800000u);
        for (Size i = 0; i < size; ++i) choice[worst * size + i] = -as_float(0x7f800000u);
    }
}

// Phi-MoE's choice of two experts ("sparsemixer", Liu et al. 2024, GRIN): an expert's weight is its share in the softmax over
// the experts whose logits are nearly as large; the second expert is chosen without the first one. Rounded where torch rounds.
inline void sparse_mixer(const Operation& op, int dtype, const float* logits, int32_t* top_experts, float* top_weights,
                         float* work) {
    const float lowest = -as_float(0x7f800000u);
    float *masked = work, *gates = work + op.experts;
    for (Size i = 0; i < op.experts; ++i) masked[i] = logits[i];
    for (Size c = 0; c < 2; ++c) {
        Size best = 0;
        for (Size i = 1; i < op.experts; ++i) best = masked[i] > masked[best] ? i : best;
        const float peak = masked[best];
        for (Size i = 0; i < op.experts; ++i) {
            const float size = logits[i] < 0.0f ? -logits[i] : logits[i];
            float distance = peak - logits[i];
            round_to(dtype, &distance, 1);
            distance /= size > peak ? size : peak;
            round_to(dtype, &distance, 1);
            gates[i] = distance > op.epsilon ? lowest : masked[i];
        }
        const float sum = exponentials(gates, op.experts);
        top_experts[c] = static_cast<int32_t>(best);
        top_weights[c] = gates[best] / sum;
        round_to(dtype, top_weights + c, 1);
        masked[best] = lowest;
    }
}

// The top experts of one token and their weights. `logits` are float32 if the operation says so.
inline void route_row(const Operation& op, int dtype, const void* logits, int32_t* top_experts, float* top_weights,
                      float* work) {
    float *scores = work, *choice = scores + op.experts, *correction = choice + op.experts, *rest = correction + op.experts;
    if (op.bias) convert_to_f32(op.bias, static_cast<int>(op.bias_dtype), correction, op.experts);
    convert_to_f32(logits, op.floats ? static_cast<int>(llmctl::kF32) : dtype, scores, op.experts);
    if (op.scoring == llmctl::kSparseMixer) {
        sparse_mixer(op, dtype, scores, top_experts, top_weights, choice);
        return;
    }
    float sum = 1.0f;
    if (op.scoring == llmctl::kSoftmax) {
        sum = exponentials(scores, op.experts);
    } else if (op.scoring == llmctl::kSigmoidScores) {
        for (Size i = 0; i < op.experts; ++i) scores[i] = sigmoid_of(scores[i]);
    }
    for (Size i = 0; i < op.experts; ++i) choice[i] = op.bias ? scores[i] / sum + correction[i] : scores[i];
    if (op.groups > 1) keep_best_groups(op, choice, rest);
    top_indices(choice, op.experts, op.top_k, top_experts);
    float top_sum = 0.0f;
    for (Size c = 0; c < op.top_k; ++c) top_weights[c] = scores[top_experts[c]];
    if (op.scoring == llmctl::kTopSoftmax) sum = exponentials(top_weights, op.top_k);
    for (Size c = 0; op.scoring == llmctl::kTopSigmoid && c < op.top_k; ++c) top_weights[c] = sigmoid_of(top_weights[c]);
    for (Size c = 0; c < op.top_k; ++c) {
        top_weights[c] /= sum;
        top_sum += top_weights[c];
    }
    if (op.normalize_top_k && top_sum < op.epsilon) top_sum = op.epsilon;
    for (Size c = 0; c < op.top_k; ++c) {
        if (op.normalize_top_k) top_weights[c] /= top_sum;
        top_weights[c] *= op.scale;
        if (op.skip) {
            float factor;
            convert_to_f32(advanced(op.skip, static_cast<int>(op.head_dtype), top_experts[c]), static_cast<int>(op.head_dtype),
                           &factor, 1);
            top_weights[c] *= factor;
        }
        if (op.round_top_k) round_to(dtype, top_weights + c, 1);
    }
}

}  // namespace
