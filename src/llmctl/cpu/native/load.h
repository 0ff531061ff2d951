// Loading of float32 vectors from numbers of any supported type.
#pragma once

#include "kernels.h"

namespace {

inline Simd::F load_any(const void* base, int dtype, Size at) {
    if (dtype == llmctl::kF32) return Simd::load(static_cast<const float*>(base) + at);
    if (dtype == llmctl::kBF16) return Simd::load(static_cast<const uint16_t*>(base) + at);
    return Simd::load_f16(static_cast<const uint16_t*>(base) + at);
}

}  // namespace
