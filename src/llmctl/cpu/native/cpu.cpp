// The instruction sets that this processor and operating system can run.
#include "cpu.h"

#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define LLMCTL_X86
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace llmctl {
namespace {

#ifdef LLMCTL_X86
struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned part) {
    Registers r{};
#ifdef _MSC_VER
    int values[4];
    __cpuidex(values, static_cast<int>(leaf), static_cast<int>(part));
    r = {unsigned(values[0]), unsigned(values[1]), unsigned(values[2]), unsigned(values[3])};
#else
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
#endif
    return r;
}

unsigned saved_state() {  // the registers that the operating system saves when it switches threads
#ifdef _MSC_VER
    return static_cast<unsigned>(_xgetbv(0));
#else
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

// The operating system must permit a process to use tiles, because they enlarge the state of every thread.
bool tiles_permitted() {
#ifdef __linux__
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return (saved_state() & 0x60000u) == 0x60000u && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool bit(unsigned value, int n) { return (value >> n) & 1u; }

bool x86_supports(const char* name) {
    const Registers one = cpuid(1, 0);
    if (!bit(one.c, 27) || !bit(one.c, 28) || (saved_state() & 6u) != 6u) return false;  // OSXSAVE, AVX, YMM
    const Registers seven = cpuid(7, 0), more = seven.a >= 1 ? cpuid(7, 1) : Registers{};
    const bool avx2 = bit(seven.b, 5) && bit(one.c, 12) && bit(one.c, 29);  // with FMA and F16C
    const bool avx512 = avx2 && (saved_state() & 0xe6u) == 0xe6u && bit(seven.b, 16) && bit(seven.b, 17) &&
                        bit(seven.b, 30) && bit(seven.b, 31) && bit(seven.c, 11);  // F, DQ, BW, VL, VNNI
    if (std::strcmp(name, "avx2") == 0) return avx2;
    if (std::strcmp(name, "avxvnni") == 0) return avx2 && bit(more.a, 4);
    const bool avx512bf16 = avx512 && bit(more.a, 5) && bit(seven.c, 1);  // with VBMI
    if (std::strcmp(name, "avx512bf16") == 0) return avx512bf16;
    if (std::strcmp(name, "amxbf16") == 0) return avx512bf16 && bit(seven.d, 22) && bit(seven.d, 24) && tiles_permitted();
    return avx512;
}
#endif

}  // namespace

bool cpu_supports(const char* name) {
    if (std::strcmp(name, "portable") == 0) return true;
#if defined(LLMCTL_X86)
    return x86_supports(name);
#elif defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20) & 1u;  // HWCAP_ASIMDDP
#elif defined(__aarch64__)
    return true;  // every such processor of Apple has the dot product
#else
    return false;
#endif
}

}  // namespace llmctl
