// Work over several threads: of OpenMP's pool where the process has one (torch's), else of a pool of our own.
#pragma once

#include <functional>

#include "kernels.h"

namespace llmctl {

// How GCC's compilers start a parallel region; LLVM's runtime offers the same on Linux. It is looked up in the library
// that torch has loaded: a second pool whose threads wait actively would take torch's cores away.
using StartRegion = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

void use_region(StartRegion start);

// Call `function(begin, end)` for pieces of 0..count of at most `chunk`, on up to `threads` threads.
void parallel_for(Size count, Size chunk, int threads, const std::function<void(Size, Size)>& function);

// Memory of the calling thread, aligned to 64 bytes; what was asked for before with the same slot is lost.
enum Slot { kInputs, kWork, kBias, kSlots };
void* scratch(Slot slot, Size bytes);

}  // namespace llmctl
