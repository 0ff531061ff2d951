// Vectors of 256 bits: AVX2 with FMA and F16C. LLMCTL_DOT256(sum, bytes, signed bytes) may be defined as one instruction.
#pragma once

#include <immintrin.h>

#include "convert.h"

namespace {

struct Simd {
    static constexpr int kLanes = 8;
    static constexpr int kQueryTile = 4;
    using F = __m256;
    using I = __m256i;
    using B = __m256i;

    static F zero() { return _mm256_setzero_ps(); }
    static F set(float v) { return _mm256_set1_ps(v); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static F load(const uint16_t* p) {  // bfloat16
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
    }
    static F load_f16(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static F load_e8m0(const uint8_t* p) {  // 2^(e - 127)
        const I e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
        return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x400000)));
    }
    static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F where_less(F a, F b, F then, F otherwise) {
        return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
    }
    static F two_to(F n) {  // n is whole, between -126 and 127
        const I i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(i, 23));
    }
    static F floats(I v) { return _mm256_cvtepi32_ps(v); }
    static I set_int(int32_t v) { return _mm256_set1_epi32(v); }

    static B bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static B code(const int8_t* table, uint8_t flip) {
        const __m128i row = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)),
                                          _mm_set1_epi8(static_cast<char>(flip)));
        return _mm256_broadcastsi128_si256(row);
    }
    static B low(B v, B table) { return _mm256_shuffle_epi8(table, _mm256_and_si256(v, _mm256_set1_epi8(15))); }
    static B high(B v, B table) {
        return _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)));
    }
    static B flipped(B v) { return _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(0x80))); }
    static void store_bytes(uint8_t* p, B v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
#ifdef LLMCTL_DOT256
    static constexpr bool kUnsigned = true;  // the dot product takes weights as unsigned bytes, 128 too large
    struct Quad {
        I value;
    };
    static Quad quad(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        return {_mm256_set1_epi32(four)};
    }
    static I dot(I sum, B w, Quad x) { return LLMCTL_DOT256(sum, w, x.value); }
#else
    // Pairs of products are added in 16 bits, saturating. Absolute values of 127 at most keep them below 32768.
    static constexpr bool kUnsigned = false;
    struct Quad {
        I value, absolute;
    };
    static Quad quad(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        const I value = _mm256_set1_epi32(four);
        return {value, _mm256_abs_epi8(value)};
    }
    static I dot(I sum, B w, Quad x) {
        const I pairs = _mm256_maddubs_epi16(x.absolute, _mm256_sign_epi8(w, x.value));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
#endif

    static float total(F v) {
        const F pairs = _mm256_hadd_ps(v, v), fours = _mm256_hadd_ps(pairs, pairs);
        return _mm_cvtss_f32(_mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
    }
    // The sums of the lanes of four vectors.
    static void store_totals(float* to, F a, F b, F c, F d) {
        const F halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
    }

    // The nearest of sixteen points: middle[i] lies between the points i - 1 and i. Binary search in four
    // comparisons; the next value to compare with is looked up by the number of points below so far.
    struct Nearest {
        F first, second, third, fourth, low, high;
        Nearest(const float* m, const float* point_at)
            : first(set(m[8])),
              second(_mm256_setr_ps(m[4], m[12], 0, 0, 0, 0, 0, 0)),
              third(_mm256_setr_ps(m[2], m[6], m[10], m[14], 0, 0, 0, 0)),
              fourth(_mm256_setr_ps(m[1], m[3], m[5], m[7], m[9], m[11], m[13], m[15])),
              low(load(point_at)),
              high(load(point_at + 8)) {}
        static I less(F a, F b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
        I number(F v, I upper) const {
            const auto doubled = [v](I found, F next) {
                const I more = less(_mm256_permutevar8x32_ps(next, found), v);
                return _mm256_sub_epi32(_mm256_add_epi32(found, found), more);
            };
            return doubled(doubled(doubled(_mm256_sub_epi32(_mm256_setzero_si256(), upper), second), third), fourth);
        }
        F point(F v) const {
            const I upper = less(first, v), found = number(v, upper);
            return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, found), _mm256_permutevar8x32_ps(high, found),
                                    _mm256_castsi256_ps(upper));
        }
        F index(F v) const { return floats(number(v, less(first, v))); }
    };

    static void transpose(F (&r)[8]) {
        F t[8];
        for (int i = 0; i < 8; i += 2) {
            t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
            r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
            r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
            r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
            t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
        }
        for (int i = 0; i < 8; ++i) r[i] = t[i];
    }
};

}  // namespace
