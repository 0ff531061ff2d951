#pragma once

namespace llmctl {

// Whether the kernels of an instruction set, by the name of their table, can run here.
bool cpu_supports(const char* name);

}  // namespace llmctl
