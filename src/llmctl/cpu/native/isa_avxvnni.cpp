#define LLMCTL_DOT256 _mm256_dpbusd_avx_epi32
#include "simd_avx2.h"

#include "isa.h"

LLMCTL_TABLE(avxvnni)
