#include "mxfp4.h"

#include <cstring>

#include "threads.h"

namespace llmctl {
namespace {

// 32 inputs of one row: nibbles i and 16 + i come into one byte, four bytes of the row every 64 bytes.
void pack_row(const uint8_t* pairs, uint8_t* to) {
    for (Size quad = 0; quad < 4; ++quad, pairs += 2, to += 64) {
        const uint8_t first = pairs[0], second = pairs[1], far_first = pairs[8], far_second = pairs[9];
        to[0] = uint8_t((first & 15) | far_first << 4);
        to[1] = uint8_t(first >> 4 | (far_first & 0xf0));
        to[2] = uint8_t((second & 15) | far_second << 4);
        to[3] = uint8_t(second >> 4 | (far_second & 0xf0));
    }
}

}  // namespace

void pack_mxfp4(const uint8_t* pairs, const uint8_t* exponents, Size n, Size blocks, uint8_t* codes, uint8_t* scales, int threads) {
    parallel_for(ceil_div(n, kGroup), 1, threads, [&](Size begin, Size end) {
        for (Size group = begin; group < end; ++group) {
            const Size rows = n - group * kGroup < kGroup ? n - group * kGroup : kGroup;
            for (Size block = 0; block < blocks; ++block) {
                const Size place = group * blocks + block;
                uint8_t *to = codes + place * 256, *scale = scales + place * kGroup;
                if (rows < kGroup) std::memset(to, 0, 256), std::memset(scale, 0, size_t(kGroup));
                for (Size row = 0; row < rows; ++row) {
                    const Size from = (group * kGroup + row) * blocks + block;
                    pack_row(pairs + from * 16, to + row * 4);
                    scale[row] = exponents[from];
                }
            }
        }
    });
}

}  // namespace llmctl
