"""The structs and enumerations shared with the compiled library: native/kernels.h and native/program.h.

The library exports the sizes of both structs, and `kernels.load` compares them with the sizes here.
"""

import ctypes
from typing import Literal, get_args

from llmctl.cpu.packing import Encoding

OperationKind = Literal[
    "embedding",
    "rms_norm",
    "linear",
    "prepare_heads",
    "attention",
    "gated_activation",
    "add",
    "gather_last",
    "route",
    "experts",
    "scale",
    "linear_heads",
    "causal_conv",
    "delta_rule",
    "selective_scan",
    "gated_norm",
    "activation",
    "add_media",
]
NormFlavour = Literal["norm_then_weight", "one_plus_weight", "weight_then_round", "no_weight", "layer_norm"]
RopeLayout = Literal["halves", "pairs", "pairs_of_halves"]
Activation = Literal["silu", "gelu_tanh", "sigmoid", "identity", "clamped_swiglu", "relu_squared", "gelu", "xielu"]
Scoring = Literal["softmax", "top_softmax", "sigmoid", "sparse_mixer", "top_sigmoid"]
Destination = Literal["buffer", "logits", "keys", "values", "floats"]
# The index of a value is its number in C++.
OPERATION_KINDS: tuple[OperationKind, ...] = get_args(OperationKind)
NORM_FLAVOURS: tuple[NormFlavour, ...] = get_args(NormFlavour)
ROPE_LAYOUTS: tuple[RopeLayout, ...] = get_args(RopeLayout)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
DESTINATIONS: tuple[Destination, ...] = get_args(Destination)
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


def _sizes(*names: str) -> tuple[tuple[str, type[ctypes.c_int64]], ...]:
    return tuple((name, ctypes.c_int64) for name in names)


def _floats(*names: str) -> tuple[tuple[str, type[ctypes.c_float]], ...]:
    return tuple((name, ctypes.c_float) for name in names)


def _pointers(*names: str) -> tuple[tuple[str, type[ctypes.c_void_p]], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


class Operation(ctypes.Structure):
    """One operation of a program. `Operation` in native/kernels.h explains the fields."""

    _fields_ = (
        *_sizes("kind", "per_sequence"),
        *_sizes("input", "input_offset", "input_stride"),
        *_sizes("other", "other_offset", "other_stride"),
        *_sizes("destination", "output", "n", "k", "bits", "encoding", "same_input"),
        *_sizes("norm_flavour", "activation"),
        *_sizes("heads", "kv_heads", "head_size", "layer", "window", "chunk"),
        *_sizes("head_stride", "output_head_stride", "output_offset", "output_stride"),
        *_sizes("norm_last", "gate_last"),
        *_sizes("value_size", "values_in_keys"),
        *_sizes("state", "kernel_size", "state_size"),
        *_sizes("step", "step_offset", "step_stride"),
        *_sizes("beta", "beta_offset", "beta_stride"),
        *_sizes("rope", "rotary_size", "rope_layout", "rope_in_float32", "token_factor"),
        *_sizes("experts", "top_k", "normalize_top_k", "round_top_k", "intermediate_size"),
        *_sizes("scoring", "groups", "top_groups", "group_best", "floats", "interleaved", "ungated", "weighs_inputs"),
        *_sizes("media"),
        *_pointers("weight"),
        *_sizes("weight_dtype"),
        *_pointers("scales", "bias"),
        *_sizes("bias_dtype"),
        *_pointers("down_weight", "a_log", "step_bias", "skip"),
        *_sizes("head_dtype"),
        *_pointers("down_bias"),
        *_floats("epsilon", "scale", "softcap", "step_low", "step_high", "alpha", "limit", "negative_alpha", "slope"),
    )


class Pass(ctypes.Structure):
    """The data of one forward pass. `Pass` in native/program.h explains the fields."""

    _fields_ = (
        *_sizes("dtype", "tokens", "sequences"),
        *_pointers("buffers", "logits", "token_ids", "slots", "last_tokens", "rope_cos", "rope_sin", "token_factors"),
        *_pointers("keys", "values", "page_table", "query_start", "kv_length", "states", "state_slots"),
        *_pointers("media_rows", "media", "visible_end", "window_visible_end"),
        *_sizes("media_count", "max_pages", "page_tokens", "threads"),
    )
