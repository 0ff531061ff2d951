#include "simd_portable.h"

#include "isa.h"

LLMCTL_TABLE(portable)
