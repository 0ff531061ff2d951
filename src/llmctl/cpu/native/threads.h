// Work on several threads: those of OpenMP's pool where the process has one (torch's), else those of a pool of our own.
#pragma once

#include <functional>

#include "kernels.h"

namespace llmctl {

// GOMP_parallel, by which GCC's compilers start a parallel region; LLVM's runtime offers it too on Linux. It is taken from
// the library that torch has loaded: a second pool whose threads wait actively would take torch's cores away.
using StartRegion = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

void use_region(StartRegion start);

// Call `function(begin, end)` for pieces of 0..count of at most `chunk`, on up to `threads` threads.
void parallel_for(Size count, Size chunk, int threads, const std::function<void(Size, Size)>& function);

// Memory of the calling thread, aligned to 64 bytes. A second call with the same slot may overwrite or free the first's.
enum Slot { kInputs, kWork, kBias, kSlots };
void* scratch(Slot slot, Size bytes);

}  // namespace llmctl
