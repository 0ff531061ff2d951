"""The packing of one linear layer's weight [outputs, inputs], as the pre-quantised formats of the Hub store it.

Each function returns the tensors that replace the weight, by their names in the layer.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Parts = dict[str, "Tensor"]


# -- integers


def _grouped(weight: "Tensor", group: int, bits: int) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return codes [n, k], scales and zero points [n, k/group] of an asymmetric quantisation."""
    import torch

    n, k = weight.shape
    groups = weight.float().view(n, k // group, group)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=1e-6)
    zero = (-low / scale).round().clamp(0, top)
    codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, top).view(n, k)
    return codes.to(torch.int32), scale, zero.to(torch.int32)


def _pack32(codes: "Tensor", bits: int, order: tuple[int, ...] | None = None) -> "Tensor":
    """Pack codes [rows, columns] along the columns into int32."""
    import torch

    count = 32 // bits
    split = codes.view(codes.shape[0], -1, count).to(torch.int64)
    words = sum(split[..., source] << (bits * place) for place, source in enumerate(order or range(count)))
    assert not isinstance(words, int)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def gptq(weight: "Tensor", *, bits: int = 4, group: int = 128, with_order: bool = True) -> Parts:
    import torch

    codes, scale, zero = _grouped(weight, group, bits)
    order = {"g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // group} if with_order else {}
    return {
        "qweight": _pack32(codes, bits).T,
        "qzeros": _pack32(zero.T - 1 & 2**bits - 1, bits),
        "scales": scale.T.half(),
        **order,
    }


def awq(weight: "Tensor") -> Parts:
    codes, scale, zero = _grouped(weight, 128, 4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": _pack32(codes.T.contiguous(), 4, order),
        "qzeros": _pack32(zero.T.contiguous(), 4, order),
        "scales": scale.T.half(),
    }


def _symmetric(weight: "Tensor", top: int) -> tuple["Tensor", "Tensor"]:
    """Return codes [n, k] and scales [n, 1]."""
    scale = (weight.float().abs().amax(1, keepdim=True) / top).clamp(min=1e-6)
    return (weight.float() / scale).round().clamp(-top, top), scale


def ct_int4(weight: "Tensor") -> Parts:
    import torch

    n, k = weight.shape
    codes, scale = _symmetric(weight.reshape(-1, 128), 7)
    return {
        "weight_packed": _pack32((codes + 8).view(n, k), 4),
        "weight_scale": scale.view(n, -1).bfloat16(),
        "weight_shape": torch.tensor([n, k]),
    }


def int8(weight: "Tensor") -> Parts:
    import torch

    codes, scale = _symmetric(weight, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scale.bfloat16()}


def bitnet(weight: "Tensor", *, divides: bool = True) -> Parts:
    """Four ternary weights in each byte. `BitLinear` divides by the scale, `AutoBitLinear` multiplies by it."""
    import torch

    scale = weight.float().abs().mean().clamp(min=1e-5)
    ternary = (weight.float() / scale).round().clamp(-1, 1).add(1).to(torch.uint8)
    quarter = len(weight) // 4
    first, second, third, fourth = (ternary[place * quarter : (place + 1) * quarter] for place in range(4))
    stored_scale = 1 / scale if divides else scale
    return {
        "weight": first | second << 2 | third << 4 | fourth << 6,
        "weight_scale": stored_scale.reshape(1).bfloat16(),
    }


def affine(weight: "Tensor", *, biases: str) -> Parts:
    """MLX's layout: codes from the lowest bits on, `scale * code + bias`."""
    import torch

    n, k = weight.shape
    groups = weight.float().view(n, -1, 64)
    low = groups.amin(2)
    scale = ((groups.amax(2) - low) / 15).clamp(min=1e-6)
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).view(n, k)
    packed = _pack32(codes, 4).view(torch.uint32)
    return {"weight": packed, "scales": scale.bfloat16(), biases: low.bfloat16()}


def gemma(weight: "Tensor") -> Parts:
    import torch

    codes, scale = _symmetric(weight, 127)
    uncalibrated = {f"{side}_activation_scale": torch.zeros(()) for side in ("input", "output")}
    return {"weight": codes.to(torch.int8), "weight_scale": scale, **uncalibrated}


# -- floating point in 8 and 4 bits


def ct_fp8(weight: "Tensor") -> Parts:
    import torch

    scale = (weight.float().abs().amax(1, keepdim=True) / 448).clamp(min=1e-6)
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale.bfloat16()}


def fbgemm(weight: "Tensor") -> Parts:
    import torch

    parts = ct_fp8(weight)
    return {"weight": parts["weight"], "weight_scale": parts["weight_scale"].float(), "input_scale_ub": torch.ones(1)}


def fp8(weight: "Tensor", *, block: tuple[int, int] = (128, 128), exponents: bool = False) -> Parts:
    import torch

    n, k = weight.shape
    rows, columns = min(block[0], n), block[1]
    blocks = weight.float().view(n // rows, rows, k // columns, columns)
    scale = (blocks.abs().amax((1, 3)) / 448).clamp(min=1e-6)
    if exponents:
        scale = scale.log2().ceil().exp2()
    codes = (blocks / scale[:, None, :, None]).view(n, k).to(torch.float8_e4m3fn)
    return {
        "weight": codes,
        "weight_scale_inv": (scale.log2() + 127).to(torch.uint8) if exponents else scale,
    }


_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _fp4_codes(values: "Tensor") -> "Tensor":
    """Return two 4-bit floating-point codes in each byte, the first in the low bits."""
    import torch

    table = torch.tensor([*_FP4, *(-value for value in _FP4)])
    nearest = (values[..., None] - table).abs().argmin(-1).to(torch.uint8)
    return nearest[..., 0::2] | nearest[..., 1::2] << 4


def mxfp4(weight: "Tensor") -> Parts:
    """The experts of gpt-oss: weight [experts, inputs, outputs] as blocks [experts, outputs, inputs/32, 16]."""
    import torch

    blocks = weight.float().transpose(1, 2).unflatten(2, (-1, 32))
    exponent = (blocks.abs().amax(3) / 6).clamp(min=1e-6).log2().ceil()
    codes = _fp4_codes(blocks / exponent.exp2()[..., None])
    return {"_blocks": codes, "_scales": (exponent + 127).to(torch.uint8)}


def nvfp4(weight: "Tensor", *, names: tuple[str, str, str, str]) -> Parts:
    import torch

    n, k = weight.shape
    blocks = weight.float().view(n, k // 16, 16)
    whole = blocks.abs().amax() / (6 * 448)
    scale = (blocks.abs().amax(2) / 6 / whole).to(torch.float8_e4m3fn)
    codes = _fp4_codes(blocks / (scale.float() * whole).clamp(min=1e-9)[..., None]).view(n, k // 2)
    inverse = names[2].endswith("global_scale")  # compressed-tensors divides by it
    parts = {names[0]: codes, names[1]: scale, names[2]: (1 / whole if inverse else whole).reshape(1)}
    return {**parts, names[3]: torch.ones(1)} if names[3] else parts


# -- formats of which only names, dtypes and shapes are right


def _random(weight: "Tensor", kind: Callable[[int, int], Mapping[str, tuple[str, tuple[int, ...]]]]) -> Parts:
    import torch

    parts = {}
    for name, (dtype_name, shape) in kind(*weight.shape).items():
        dtype = getattr(torch, dtype_name)
        small = torch.rand(shape) * 0.1
        parts[name] = small.to(dtype) if dtype.is_floating_point else torch.randint(0, 100, shape).to(dtype)
    return parts


def aqlm(weight: "Tensor") -> Parts:
    """Two codebooks of 256 vectors of 8 weights: random weights, as large as the original's."""
    import torch

    n, k = weight.shape
    return {
        "codes": torch.randint(-128, 128, (n, k // 8, 2)).to(torch.int8),
        "codebooks": (torch.randn(2, 256, 1, 8) * 0.2).half(),
        "scales": torch.ones(n, 1, 1, 1).half(),
    }


def _only(kind: Callable[[int, int], Mapping[str, tuple[str, tuple[int, ...]]]]) -> Callable[["Tensor"], Parts]:
    return lambda weight: _random(weight, kind)


eetq = _only(lambda n, k: {"weight": ("int8", (k, n)), "weight_scales": ("float16", (n,))})
hqq = _only(
    lambda n, k: {
        "W_q": ("uint8", (n // 2, k)),
        "scale": ("float16", (n * k // 64, 1)),
        "zero": ("float16", (n * k // 64, 1)),
        **dict.fromkeys(("nbits", "group_size", "axis", "packing", "view_as_float"), ("int32", (1,))),
        "shape": ("int32", (2,)),
    }
)
quanto = _only(
    lambda n, k: {
        "weight._data": ("int8", (n, k)),
        "weight._scale": ("bfloat16", (n, 1)),
        "input_scale": ("float32", ()),
        "output_scale": ("float32", ()),
    }
)
higgs = _only(
    lambda n, k: {
        "weight": ("int16", (n // 4, k)),
        "scales": ("float16", (n, max(k // 256, 1))),
        "tables": ("float16", (16,)),
        "tables2": ("float16", (16, 16, 2)),
    }
)
spqr = _only(
    lambda n, k: {
        "dense_weights": ("int64", (n * k // 16,)),
        "row_offsets": ("int32", (n + 1,)),
        "col_vals": ("int32", (n,)),
        "in_perm": ("int32", (k,)),
    }
)
vptq = _only(
    lambda n, k: {
        "centroids.weight": ("bfloat16", (1, 256 * 8)),
        "indices": ("int16", (1, k, n // 16)),
        "perm": ("int16", (k,)),
        "weight_scale": ("bfloat16", (k,)),
        "weight_bias": ("bfloat16", (k,)),
    }
)
fp_quant = _only(
    lambda n, k: {
        "qweight": ("uint8", (n, k // 2)),
        "scales": ("uint8", (n, k // 32)),
        "forward_hadamard_matrix": ("bfloat16", (32, 32)),
        "backward_hadamard_matrix": ("bfloat16", (32, 32)),
        "weight_global_scale": ("float32", (1,)),
        "act_global_scale": ("float32", (1,)),
    }
)
sinq = _only(
    lambda n, k: {
        "W_q": ("uint8", (n, k // 2)),
        "meta.scale": ("float16", (n, k // 64)),
        "meta.zero": ("float16", (n, k // 64)),
        "meta.scale2": ("float16", (1, k)),
    }
)
four_over_six = _only(
    lambda n, k: {
        "quantized_weight_values": ("uint8", (n, k // 2)),
        "quantized_weight_scale_factors": ("uint8", (n, k // 16)),
        "quantized_weight_amax": ("float32", (1,)),
        "quantized_weight_metadata": ("int32", (4,)),
    }
)


def torchao(weight: "Tensor") -> Parts:
    import torch

    codes, scale = _symmetric(weight, 127)
    return {"_weight_qdata": codes.to(torch.int8), "_weight_scale": scale.bfloat16()}


def quark(weight: "Tensor") -> Parts:
    import torch

    scale = weight.float().abs().amax() / 448
    return {
        "weight": (weight.float() / scale).to(torch.float8_e4m3fn),
        "weight_scale": scale,
        "input_scale": torch.ones(()),
    }
