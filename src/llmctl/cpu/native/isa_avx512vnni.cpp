#include "simd_avx512.h"

#include "isa.h"

LLMCTL_TABLE(avx512vnni)
