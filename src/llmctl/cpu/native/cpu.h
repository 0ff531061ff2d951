#pragma once

namespace llmctl {

// Return true if the kernels of an instruction set can run here.
bool cpu_supports(const char* name);

}  // namespace llmctl
