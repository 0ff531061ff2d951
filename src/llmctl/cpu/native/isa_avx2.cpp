#include "simd_avx2.h"

#include "isa.h"

LLMCTL_TABLE(avx2)
