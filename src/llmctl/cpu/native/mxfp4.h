// Weights of MXFP4 checkpoints in the layout of the kernels.
#pragma once

#include "kernels.h"

namespace llmctl {

// The weight [n][32 * blocks] of a checkpoint, `pairs` [n][blocks][16] with two consecutive inputs in each byte, the first in the
// low nibble, and `exponents` [n][blocks], as codes [group][block][256] and scales [group][block][16]. Rows that fill the last
// group are zeros.
void pack_mxfp4(const uint8_t* pairs, const uint8_t* exponents, Size n, Size blocks, uint8_t* codes, uint8_t* scales, int threads);

}  // namespace llmctl
