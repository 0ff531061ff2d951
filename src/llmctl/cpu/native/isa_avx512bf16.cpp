#define LLMCTL_BF16_DOT
#define LLMCTL_BYTE_PERMUTE
#include "simd_avx512.h"

#include "isa.h"

LLMCTL_TABLE(avx512bf16)
