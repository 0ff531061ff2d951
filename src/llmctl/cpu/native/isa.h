// All functions of one instruction set. Include a simd_*.h first; LLMCTL_TABLE(name) then defines the function table.
#pragma once

#include "attention.h"
#include "dense.h"
#include "quantize.h"
#include "quantized.h"
#include "recurrent.h"
#include "routing.h"

#ifdef LLMCTL_TILES
#define LLMCTL_HAS_TILES true
#else
#define LLMCTL_HAS_TILES false
#endif
#ifdef LLMCTL_BF16_DOT
#define LLMCTL_HAS_BF16_DOT true
#else
#define LLMCTL_HAS_BF16_DOT false
#endif

#define LLMCTL_NAME_OF(name) #name
#define LLMCTL_TABLE(name)                                                                                            \
    extern const llmctl::Isa llmctl_isa_##name;                                                                       \
    const llmctl::Isa llmctl_isa_##name = {                                                                           \
        LLMCTL_NAME_OF(name), Simd::kQueryTile, LLMCTL_HAS_BF16_DOT,  LLMCTL_HAS_TILES, quantize_rows, linear_quantized, linear_dense, \
        attention,            quantize_weight,  convert_to_f32,       convert_from_f32, rms_norm_row,                    \
        prepare_heads_row,    gated_activation_row, activation_row,   route_row,        add_row,                         \
        scale_row,        embedding_row,        causal_conv,      delta_rule,       selective_scan,                  \
        gated_norm_row};
