// Conversions of 16-bit numbers, in plain C++ that compilers vectorise. Every instruction set compiles its own copy.
#pragma once

#include <cstring>

#include "kernels.h"

#if defined(__GNUC__)
#define LLMCTL_INLINE __attribute__((always_inline)) inline
#define LLMCTL_PREFETCH(address) __builtin_prefetch(address)
#define LLMCTL_PREFETCH_FAR(address) __builtin_prefetch(address, 0, 2)  // to the second-level cache
#else
#define LLMCTL_INLINE inline
#define LLMCTL_PREFETCH(address) ((void)(address))
#define LLMCTL_PREFETCH_FAR(address) ((void)(address))
#endif

#if !defined(__GNUC__)
extern "C" double sqrt(double);
extern "C" double exp(double);
extern "C" double log1p(double);
#endif

namespace {

inline float square_root(float value) {
#if defined(__GNUC__)
    return __builtin_sqrtf(value);
#else
    return static_cast<float>(sqrt(static_cast<double>(value)));
#endif
}

inline double natural_exp(double value) {
#if defined(__GNUC__)
    return __builtin_exp(value);
#else
    return exp(value);
#endif
}

inline double natural_log1p(double value) {
#if defined(__GNUC__)
    return __builtin_log1p(value);
#else
    return log1p(value);
#endif
}

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// 2^(value - 127), of MXFP4; infinity for 255.
inline float from_e8m0(uint8_t value) { return as_float(value ? static_cast<uint32_t>(value) << 23 : 0x400000u); }

inline float from_bf16(uint16_t value) { return as_float(static_cast<uint32_t>(value) << 16); }

inline uint16_t to_bf16(float value) {  // to nearest, ties to even, as torch rounds
    const uint32_t bits = as_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

inline float from_f16(uint16_t value) {
    const uint32_t sign = (value & 0x8000u) << 16, rest = (value & 0x7fffu) << 13;
    const float scaled = as_float(rest) * 0x1p112f;  // also right for subnormal numbers
    const uint32_t special = rest >= 0x0f800000u ? (0x7f800000u | (rest & 0x007fffffu)) : as_bits(scaled);
    return as_float(sign | special);
}

inline uint16_t to_f16(float value) {
    const uint32_t bits = as_bits(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);   // rounds to 65536 or more
    if (rest < 0x38800000u) {  // subnormal: the addition rounds to multiples of 2^-24
        return static_cast<uint16_t>(sign | (as_bits(as_float(rest) + 0.5f) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13));
}

inline const void* advanced(const void* base, int dtype, Size count) {
    return static_cast<const char*>(base) + count * (dtype == llmctl::kF32 ? 4 : 2);
}

inline void* advanced(void* base, int dtype, Size count) {
    return static_cast<char*>(base) + count * (dtype == llmctl::kF32 ? 4 : 2);
}

inline void convert_to_f32(const void* from, int dtype, float* to, Size count) {
    if (dtype == llmctl::kF32) {
        std::memcpy(to, from, static_cast<size_t>(count) * 4);
    } else if (dtype == llmctl::kBF16) {
        const uint16_t* halves = static_cast<const uint16_t*>(from);
        for (Size i = 0; i < count; ++i) to[i] = from_bf16(halves[i]);
    } else {
        const uint16_t* halves = static_cast<const uint16_t*>(from);
        for (Size i = 0; i < count; ++i) to[i] = from_f16(halves[i]);
    }
}

inline void convert_from_f32(const float* from, void* to, int dtype, Size count) {
    if (dtype == llmctl::kF32) {
        std::memcpy(to, from, static_cast<size_t>(count) * 4);
    } else if (dtype == llmctl::kBF16) {
        uint16_t* halves = static_cast<uint16_t*>(to);
        for (Size i = 0; i < count; ++i) halves[i] = to_bf16(from[i]);
    } else {
        uint16_t* halves = static_cast<uint16_t*>(to);
        for (Size i = 0; i < count; ++i) halves[i] = to_f16(from[i]);
    }
}

// Store the results of a group: 16, or fewer at the end of the rows.
inline void store_results(const float* values, const float* bias, void* y, int dtype, Size count) {
    float sums[16];
    if (count == 16) {
        if (bias) {
            for (Size i = 0; i < 16; ++i) sums[i] = values[i] + bias[i];
            values = sums;
        }
        convert_from_f32(values, y, dtype, 16);
        return;
    }
    for (Size i = 0; i < count; ++i) sums[i] = bias ? values[i] + bias[i] : values[i];
    convert_from_f32(sums, y, dtype, count);
}

}  // namespace
