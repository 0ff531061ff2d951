// Vectors of 512 bits: AVX512 F, BW, DQ, VL and VNNI, BF16 where LLMCTL_BF16_DOT is defined, and
// VBMI where LLMCTL_BYTE_PERMUTE is.
#pragma once

#include <immintrin.h>

#include "convert.h"

namespace {

struct Simd {
    static constexpr int kLanes = 16;
    static constexpr int kQueryTile = 8;
    static constexpr bool kUnsigned = true;  // the dot product takes weights as unsigned bytes, 128 too large
    using F = __m512;
    using I = __m512i;
    using B = __m512i;

    static F zero() { return _mm512_setzero_ps(); }
    static F set(float v) { return _mm512_set1_ps(v); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load(const uint16_t* p) {  // bfloat16
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
    }
    static F load_f16(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static F load_e8m0(const uint8_t* p) {  // 2^(e - 127)
        const I e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x400000)));
    }
    static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F where_less(F a, F b, F then, F otherwise) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
    }
    static F two_to(F n) {  // n is whole, between -126 and 127
        const I i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
        return _mm512_castsi512_ps(_mm512_slli_epi32(i, 23));
    }
    static F floats(I v) { return _mm512_cvtepi32_ps(v); }
    static I set_int(int32_t v) { return _mm512_set1_epi32(v); }

    static B bytes(const uint8_t* p) {
        B v = _mm512_loadu_si512(p);
#ifdef __GNUC__
        __asm__("" : "+v"(v));  // as an operand in memory of both low and high, it would be loaded twice
#endif
        return v;
    }
    static B code(const int8_t* table, uint8_t flip) {
        const __m128i row = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)),
                                          _mm_set1_epi8(static_cast<char>(flip)));
        return _mm512_broadcast_i32x4(row);
    }
#ifdef LLMCTL_BYTE_PERMUTE
    // The table has the code four times, and the instruction ignores the two highest bits of an index.
    static B low(B v, B table) { return _mm512_permutexvar_epi8(v, table); }
    static B high(B v, B table) { return _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), table); }
#else
    static B low(B v, B table) { return _mm512_shuffle_epi8(table, _mm512_and_si512(v, _mm512_set1_epi8(15))); }
    static B high(B v, B table) {
        return _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)));
    }
#endif
    static B flipped(B v) { return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(0x80))); }
    static void store_bytes(uint8_t* p, B v) { _mm512_storeu_si512(p, v); }
    struct Quad {
        I value;
    };
    static Quad quad(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        return {_mm512_set1_epi32(four)};
    }
    static I dot(I sum, B w, Quad x) { return _mm512_dpbusd_epi32(sum, w, x.value); }

    static float total(F v) {
        const __m256 half = halved(v);
        const __m256 pairs = _mm256_hadd_ps(half, half), fours = _mm256_hadd_ps(pairs, pairs);
        return _mm_cvtss_f32(_mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
    }
    static __m256 halved(F v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }

    // The nearest of sixteen points: middle[i] lies between the points i - 1 and i. Found by halving.
    struct Nearest {
        F middle, points;
        Nearest(const float* middle_of, const float* point_at) : middle(load(middle_of)), points(load(point_at)) {}
        I found(F v) const {
            I at = _mm512_setzero_si512();
            for (int step = 8; step > 0; step /= 2) {
                const I tried = _mm512_add_epi32(at, _mm512_set1_epi32(step));
                const __mmask16 above = _mm512_cmp_ps_mask(v, _mm512_permutexvar_ps(tried, middle), _CMP_GT_OQ);
                at = _mm512_mask_mov_epi32(at, above, tried);
            }
            return at;
        }
        F point(F v) const { return _mm512_permutexvar_ps(found(v), points); }
        F index(F v) const { return _mm512_cvtepi32_ps(found(v)); }
    };

    static void transpose(F (&r)[16]) {
        F t[16];
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            r[i] = pairs<0>(t[i], t[i + 2]);
            r[i + 1] = pairs<1>(t[i], t[i + 2]);
            r[i + 2] = pairs<0>(t[i + 1], t[i + 3]);
            r[i + 3] = pairs<1>(t[i + 1], t[i + 3]);
        }
        for (int i = 0; i < 4; ++i) {
            t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
            t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
            t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
        }
        for (int i = 0; i < 8; ++i) {
            r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
            r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        }
    }
    template <int High>
    static F pairs(F a, F b) {
        const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_castpd_ps(High ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
    }

    // The sums of the lanes of four vectors.
    static void store_totals(float* to, F a, F b, F c, F d) {
        const F ab_low = _mm512_unpacklo_ps(a, b), ab_high = _mm512_unpackhi_ps(a, b);
        const F cd_low = _mm512_unpacklo_ps(c, d), cd_high = _mm512_unpackhi_ps(c, d);
        const F first = pairs<0>(ab_low, cd_low), second = pairs<1>(ab_low, cd_low);
        const F third = pairs<0>(ab_high, cd_high), fourth = pairs<1>(ab_high, cd_high);
        const __m256 half = halved(add(add(first, second), add(third, fourth)));
        _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
    }

#ifdef LLMCTL_BF16_DOT
    using P = __m512bh;  // 32 numbers of bfloat16
    static P load_pairs(const uint16_t* p) {
        const __m512i v = _mm512_loadu_si512(p);
        P pairs;
        std::memcpy(&pairs, &v, 64);
        return pairs;
    }
    static F dot(F sum, P a, P b) { return _mm512_dpbf16_ps(sum, a, b); }
    static void store_pairs(uint16_t* p, P v) {
        __m512i bits;
        std::memcpy(&bits, &v, 64);
        _mm512_storeu_si512(p, bits);
    }
#endif
};

}  // namespace
