// A pass of the packed tokens of several sequences through a whole model, as a list of operations.
#pragma once

#include "kernels.h"

namespace llmctl {

// What is new in every pass. Pointers to tables of int32 or int64 as Python made and checked them.
struct Pass {
    Size dtype;                  // of all buffers, keys and values
    Size tokens, sequences;
    void* const* buffers;        // [number], each with a row for every token
    float* logits;               // [sequences][vocabulary]
    const Size* ids;             // [tokens]
    const Size* slots;           // [tokens], where in the pool each token's key and value go
    const Size* last;            // [sequences], the last token of each
    const void* const* cosines;  // [kind of angles], each [tokens][rotated]
    const void* const* sines;
    void* const* keys;           // [layer], each [pages][page_tokens][kv_heads][width]
    void* const* values;
    const int32_t* page_table;   // [sequences][most_pages]
    const int32_t* query_start;  // [sequences + 1]
    const int32_t* kv_length;    // [sequences]
    Size most_pages, page_tokens, threads;
};

void run_step(const Op* ops, Size count, const Pass& pass);

}  // namespace llmctl
