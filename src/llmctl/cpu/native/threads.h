// Parallel loops on the threads of OpenMP's pool if the process has one (torch's), otherwise on a pool of our own.
#pragma once

#include <functional>

#include "kernels.h"

namespace llmctl {

// The type of GOMP_parallel, with which code compiled by GCC starts a parallel region; on Linux, LLVM's runtime has it too.
// It comes from the runtime that torch has loaded: the busy-waiting threads of a second pool would compete with torch's.
using StartRegion = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

void use_region(StartRegion start);

// Call `function(begin, end)` for pieces of 0..count of at most `chunk`, on up to `threads` threads.
void parallel_for(Size count, Size chunk, int threads, const std::function<void(Size, Size)>& function);

// Return memory of the calling thread, aligned to 64 bytes, valid until the next call with the same slot.
enum Slot { kInputs, kWork, kBias, kExpertRows, kHead, kSlots };
void* scratch(Slot slot, Size bytes);

}  // namespace llmctl
