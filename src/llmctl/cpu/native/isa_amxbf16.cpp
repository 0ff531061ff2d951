#define LLMCTL_BF16_DOT
#define LLMCTL_BYTE_PERMUTE
#define LLMCTL_TILES
#include "simd_avx512.h"

#include "isa.h"

LLMCTL_TABLE(amxbf16)
