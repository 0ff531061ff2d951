#include "simd_neon.h"

#include "isa.h"

LLMCTL_TABLE(neon)
