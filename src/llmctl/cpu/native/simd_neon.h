// Vectors of 128 bits: 64-bit ARM with the dot product of 8-bit numbers.
#pragma once

#include <arm_neon.h>

#include "convert.h"

namespace {

struct Simd {
    static constexpr int kLanes = 4;
    static constexpr int kQueryTile = 4;
    static constexpr bool kUnsigned = false;
    using F = float32x4_t;
    using I = int32x4_t;
    using B = uint8x16_t;
    using Quad = int8x16_t;

    static F zero() { return vdupq_n_f32(0.0f); }
    static F set(float v) { return vdupq_n_f32(v); }
    static F load(const float* p) { return vld1q_f32(p); }
    // bfloat16
    static F load(const uint16_t* p) { return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16)); }
    static F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static F load_e8m0(const uint8_t* p) {  // 2^(e - 127)
        uint32_t four;
        std::memcpy(&four, p, 4);
        const uint32x4_t e = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
        return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(e, 23), vdupq_n_u32(0x400000)));
    }
    static void store(float* p, F v) { vst1q_f32(p, v); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F max(F a, F b) { return vmaxq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F where_less(F a, F b, F then, F otherwise) { return vbslq_f32(vcltq_f32(a, b), then, otherwise); }
    static F two_to(F n) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
    }
    static F floats(I v) { return vcvtq_f32_s32(v); }
    static I set_int(int32_t v) { return vdupq_n_s32(v); }

    static B bytes(const uint8_t* p) { return vld1q_u8(p); }
    static B code(const int8_t* table, uint8_t flip) {
        return veorq_u8(vreinterpretq_u8_s8(vld1q_s8(table)), vdupq_n_u8(flip));
    }
    static B low(B v, B table) { return vqtbl1q_u8(table, vandq_u8(v, vdupq_n_u8(15))); }
    static B high(B v, B table) { return vqtbl1q_u8(table, vshrq_n_u8(v, 4)); }
    static B flipped(B v) { return veorq_u8(v, vdupq_n_u8(0x80)); }
    static void store_bytes(uint8_t* p, B v) { vst1q_u8(p, v); }
    static Quad quad(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(four));
    }
    static I dot(I sum, B w, Quad x) { return vdotq_s32(sum, vreinterpretq_s8_u8(w), x); }

    static float total(F v) {
        const F pairs = vpaddq_f32(v, v);
        return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
    }
    // The sums of the lanes of four vectors.
    static void store_totals(float* to, F a, F b, F c, F d) {
        vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
    }

    // The nearest of sixteen points: middle[i] lies between the points i - 1 and i.
    struct Nearest {
        const float *middle, *points;
        Nearest(const float* middle_of, const float* point_at) : middle(middle_of), points(point_at) {}
        F point(F v) const {
            F found = set(points[0]);
            for (int i = 1; i < 16; ++i) {
                found = add(found, where_less(set(middle[i]), v, set(points[i] - points[i - 1]), zero()));
            }
            return found;
        }
        F index(F v) const {
            F found = zero();
            for (int i = 1; i < 16; ++i) found = add(found, where_less(set(middle[i]), v, set(1.0f), zero()));
            return found;
        }
    };

    static void transpose(F (&r)[4]) {
        const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
        r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
        r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
        r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
        r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
    }
};

}  // namespace
