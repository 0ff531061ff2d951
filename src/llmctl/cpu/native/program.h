// A forward pass through a whole model for the packed tokens of several sequences, as a list of operations.
#pragma once

#include "kernels.h"

namespace llmctl {

// The data of one pass. cpu/structs.py has the same fields in the same order; see llmctl_pass_size().
struct Pass {
    Size dtype;                   // of all buffers, keys and values
    Size tokens, sequences;
    void* const* buffers;         // [number], each with a row for every token
    float* logits;                // [sequences][vocabulary]
    const Size* token_ids;        // [tokens]
    const Size* slots;            // [tokens], the slot of each token's key and value in the KV cache
    const Size* last_tokens;      // [sequences], the last token of each
    const float* const* rope_cos; // [rope], each [tokens][rotary_size]
    const float* const* rope_sin;
    const float* const* token_factors;  // [factor], each [tokens]
    void* const* keys;            // [layer], each [pages][page_tokens][kv_heads][head_size]
    void* const* values;
    const int32_t* page_table;    // [sequences][max_pages]
    const int32_t* query_start;   // [sequences + 1]
    const int32_t* kv_length;     // [sequences]
    void* const* states;          // [state], each with one element per slot; an operation knows its size
    const int32_t* state_slots;   // [sequences], the slot of each sequence in every state
    const int32_t* media_rows;    // [tokens], the row of each token's media, or -1 for a token of text; null without media
    const void* const* media;     // [media_count], each with rows of the hidden size in `dtype`: the embeddings, then what
                                  // is added to the hidden states after the first, second, … layer
    const int32_t* visible_end;   // [tokens], the end of the tokens that each token sees; null if that is the token itself
    const int32_t* window_visible_end;  // the same in layers with a window
    Size media_count, max_pages, page_tokens, threads;
};

void run_program(const Operation* ops, Size count, const Pass& pass);

}  // namespace llmctl
