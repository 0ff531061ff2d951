// Mixtures of experts: every token has its own few experts, whose weights are multiplied by the rows of their tokens only.
#pragma once

#include "work.h"

namespace llmctl {

// The top experts of the tokens and their weights, as a kRoute operation writes them: those of token t begin at t * stride.
struct Routes {
    const int32_t* experts;
    const float* weights;
    Size stride;  // elements of 4 bytes
};

// A kExperts operation: gate_up_proj, the gated activation, down_proj, and the weighted sum over each token's experts.
// x and out are [tokens][op.n], those of token t at t * stride bytes. An expert that does not exist is left out.
void compute_experts(const Operation& op, int dtype, Size tokens, const char* x, Size x_stride, const Routes& routes, char* out,
                     Size out_stride, int threads);

}  // namespace llmctl
