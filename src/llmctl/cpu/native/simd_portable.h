// Vectors of eight numbers in plain C++, for any processor. Every operation is one loop, which compilers vectorise.
#pragma once

#include <cmath>

#include "convert.h"

namespace {

struct Simd {
    static constexpr int kLanes = 8;
    static constexpr int kQueryTile = 4;
    static constexpr bool kUnsigned = false;
    struct F {
        float v[8];
    };
    struct I {
        int32_t v[8];
    };
    struct B {
        uint8_t v[32];
    };
    struct Quad {
        int8_t v[4];
    };
    template <class Function>
    static F each(Function function) {
        F out;
        for (int i = 0; i < 8; ++i) out.v[i] = function(i);
        return out;
    }

    static F zero() { return set(0.0f); }
    static F set(float v) {
        return each([=](int) { return v; });
    }
    static F load(const float* p) {
        return each([=](int i) { return p[i]; });
    }
    static F load(const uint16_t* p) {  // bfloat16
        return each([=](int i) { return from_bf16(p[i]); });
    }
    static F load_f16(const uint16_t* p) {
        return each([=](int i) { return from_f16(p[i]); });
    }
    static F load_e8m0(const uint8_t* p) {
        return each([=](int i) { return from_e8m0(p[i]); });
    }
    static void store(float* p, const F& a) { std::memcpy(p, a.v, 32); }
    static F add(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    static F sub(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    static F mul(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    static F div(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    static F max(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    static F fma(const F& a, const F& b, const F& c) {  // in double, then rounded: as exact as possible without hardware
        return each([&](int i) { return static_cast<float>(static_cast<double>(a.v[i]) * b.v[i] + c.v[i]); });
    }
    static F where_less(const F& a, const F& b, const F& then, const F& otherwise) {
        return each([&](int i) { return a.v[i] < b.v[i] ? then.v[i] : otherwise.v[i]; });
    }
    static F two_to(const F& n) {
        return each([&](int i) { return as_float(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23); });
    }
    static F floats(const I& a) {
        return each([&](int i) { return static_cast<float>(a.v[i]); });
    }
    static I set_int(int32_t v) {
        I out;
        for (int i = 0; i < 8; ++i) out.v[i] = v;
        return out;
    }

    static B bytes(const uint8_t* p) {
        B out;
        std::memcpy(out.v, p, 32);
        return out;
    }
    static B code(const int8_t* table, uint8_t flip) {
        B out{};
        for (int i = 0; i < 16; ++i) out.v[i] = static_cast<uint8_t>(table[i]) ^ flip;
        return out;
    }
    static B low(const B& a, const B& table) {
        B out;
        for (int i = 0; i < 32; ++i) out.v[i] = table.v[a.v[i] & 15];
        return out;
    }
    static B high(const B& a, const B& table) {
        B out;
        for (int i = 0; i < 32; ++i) out.v[i] = table.v[a.v[i] >> 4];
        return out;
    }
    static B flipped(const B& a) {
        B out;
        for (int i = 0; i < 32; ++i) out.v[i] = a.v[i] ^ 0x80;
        return out;
    }
    static void store_bytes(uint8_t* p, const B& a) { std::memcpy(p, a.v, 32); }
    static Quad quad(const int8_t* x) {
        Quad out;
        std::memcpy(out.v, x, 4);
        return out;
    }
    static I dot(const I& sum, const B& w, const Quad& x) {
        I out;
        for (int i = 0; i < 8; ++i) {
            int32_t s = sum.v[i];
            for (int j = 0; j < 4; ++j) s += static_cast<int8_t>(w.v[4 * i + j]) * x.v[j];
            out.v[i] = s;
        }
        return out;
    }

    static float total(const F& a) {
        return ((a.v[0] + a.v[1]) + (a.v[2] + a.v[3])) + ((a.v[4] + a.v[5]) + (a.v[6] + a.v[7]));
    }
    // The sums of the lanes of four vectors.
    static void store_totals(float* to, const F& a, const F& b, const F& c, const F& d) {
        const F* all[] = {&a, &b, &c, &d};
        for (int i = 0; i < 4; ++i) to[i] = total(*all[i]);
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

    static void transpose(F (&r)[8]) {
        for (int i = 0; i < 8; ++i)
            for (int j = 0; j < i; ++j) {
                const float held = r[i].v[j];
                r[i].v[j] = r[j].v[i];
                r[j].v[i] = held;
            }
    }
};

}  // namespace
