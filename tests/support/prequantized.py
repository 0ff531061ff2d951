"""Tiny checkpoints in the pre-quantised formats of the Hub, written without the formats' packages.

Every format has the names, dtypes and shapes of real checkpoints. Formats that load on a CPU hold real quantised
numbers, so that their text can be compared; the others hold random ones.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.tiny import edit_json, write_model

if TYPE_CHECKING:
    from torch import Tensor

Parts = dict[str, "Tensor"]  # the tensors that replace the weight of one linear layer, by their names in it
# Widths that every format takes: blocks of 128, two blocks in the feed-forward.
WIDTHS: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "max_position_embeddings": 256}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Attributes:
        pack: Returns the tensors that replace one weight [outputs, inputs].
        config: `quantization_config` of config.json; with a key `method`, another key of config.json has it.
        key: The key of config.json that has it.
        architecture: The tiny model's architecture.
        packs_experts: True if it packs only the experts of a mixture of experts, all in one tensor.
    """

    pack: Callable[["Tensor"], Parts]
    config: Mapping[str, Any]
    key: str = "quantization_config"
    architecture: str = "llama"
    packs_experts: bool = False


def write_checkpoint(folder: Path, name: str) -> Path:
    """Write the tiny checkpoint of a format of `FORMATS`."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    stored = FORMATS[name]
    write_model(folder, stored.architecture, **WIDTHS)
    torch.manual_seed(1)
    tensors: dict[str, Tensor] = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 (the file is no mapping)
            module, _, last = key.rpartition(".")
            tensor = file.get_tensor(key)
            is_linear = last == "weight" and module.rpartition(".")[2] in LINEAR
            if stored.packs_experts and key.endswith(("experts.gate_up_proj", "experts.down_proj")):
                tensors |= {f"{key}{part}": value.contiguous() for part, value in stored.pack(tensor).items()}
            elif is_linear and not stored.packs_experts:
                tensors |= {f"{module}.{part}": value.contiguous() for part, value in stored.pack(tensor).items()}
            else:
                tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt", **_metadata(name, tensors)})
    edit_json(folder / "config.json", **{stored.key: {**stored.config, **_layer_settings(name, tensors)}})
    return folder


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


def _gptq(weight: "Tensor", *, bits: int = 4, group: int = 128, with_order: bool = True) -> Parts:
    import torch

    codes, scale, zero = _grouped(weight, group, bits)
    order = {"g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // group} if with_order else {}
    return {
        "qweight": _pack32(codes, bits).T,
        "qzeros": _pack32(zero.T - 1 & 2**bits - 1, bits),
        "scales": scale.T.half(),
        **order,
    }


def _awq(weight: "Tensor") -> Parts:
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


def _ct_int4(weight: "Tensor") -> Parts:
    import torch

    n, k = weight.shape
    codes, scale = _symmetric(weight.reshape(-1, 128), 7)
    return {
        "weight_packed": _pack32((codes + 8).view(n, k), 4),
        "weight_scale": scale.view(n, -1).bfloat16(),
        "weight_shape": torch.tensor([n, k]),
    }


def _int8(weight: "Tensor") -> Parts:
    import torch

    codes, scale = _symmetric(weight, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scale.bfloat16()}


def _bitnet(weight: "Tensor", *, divides: bool = True) -> Parts:
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


def _affine(weight: "Tensor", *, biases: str) -> Parts:
    """MLX's layout: codes from the lowest bits on, `scale * code + bias`."""
    import torch

    n, k = weight.shape
    groups = weight.float().view(n, -1, 64)
    low = groups.amin(2)
    scale = ((groups.amax(2) - low) / 15).clamp(min=1e-6)
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).view(n, k)
    packed = _pack32(codes, 4).view(torch.uint32)
    return {"weight": packed, "scales": scale.bfloat16(), biases: low.bfloat16()}


def _gemma(weight: "Tensor") -> Parts:
    import torch

    codes, scale = _symmetric(weight, 127)
    uncalibrated = {f"{side}_activation_scale": torch.zeros(()) for side in ("input", "output")}
    return {"weight": codes.to(torch.int8), "weight_scale": scale, **uncalibrated}


# -- floating point in 8 and 4 bits


def _ct_fp8(weight: "Tensor") -> Parts:
    import torch

    scale = (weight.float().abs().amax(1, keepdim=True) / 448).clamp(min=1e-6)
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale.bfloat16()}


def _fbgemm(weight: "Tensor") -> Parts:
    import torch

    parts = _ct_fp8(weight)
    return {"weight": parts["weight"], "weight_scale": parts["weight_scale"].float(), "input_scale_ub": torch.ones(1)}


def _fp8(weight: "Tensor", *, block: tuple[int, int] = (128, 128), exponents: bool = False) -> Parts:
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


def _mxfp4(weight: "Tensor") -> Parts:
    """The experts of gpt-oss: weight [experts, inputs, outputs] as blocks [experts, outputs, inputs/32, 16]."""
    import torch

    blocks = weight.float().transpose(1, 2).unflatten(2, (-1, 32))
    exponent = (blocks.abs().amax(3) / 6).clamp(min=1e-6).log2().ceil()
    codes = _fp4_codes(blocks / exponent.exp2()[..., None])
    return {"_blocks": codes, "_scales": (exponent + 127).to(torch.uint8)}


def _nvfp4(weight: "Tensor", *, names: tuple[str, str, str, str]) -> Parts:
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


def _aqlm(weight: "Tensor") -> Parts:
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


_EETQ = _only(lambda n, k: {"weight": ("int8", (k, n)), "weight_scales": ("float16", (n,))})
_HQQ = _only(
    lambda n, k: {
        "W_q": ("uint8", (n // 2, k)),
        "scale": ("float16", (n * k // 64, 1)),
        "zero": ("float16", (n * k // 64, 1)),
        **dict.fromkeys(("nbits", "group_size", "axis", "packing", "view_as_float"), ("int32", (1,))),
        "shape": ("int32", (2,)),
    }
)
_QUANTO = _only(
    lambda n, k: {
        "weight._data": ("int8", (n, k)),
        "weight._scale": ("bfloat16", (n, 1)),
        "input_scale": ("float32", ()),
        "output_scale": ("float32", ()),
    }
)
_HIGGS = _only(
    lambda n, k: {
        "weight": ("int16", (n // 4, k)),
        "scales": ("float16", (n, max(k // 256, 1))),
        "tables": ("float16", (16,)),
        "tables2": ("float16", (16, 16, 2)),
    }
)
_SPQR = _only(
    lambda n, k: {
        "dense_weights": ("int64", (n * k // 16,)),
        "row_offsets": ("int32", (n + 1,)),
        "col_vals": ("int32", (n,)),
        "in_perm": ("int32", (k,)),
    }
)
_VPTQ = _only(
    lambda n, k: {
        "centroids.weight": ("bfloat16", (1, 256 * 8)),
        "indices": ("int16", (1, k, n // 16)),
        "perm": ("int16", (k,)),
        "weight_scale": ("bfloat16", (k,)),
        "weight_bias": ("bfloat16", (k,)),
    }
)
_FP_QUANT = _only(
    lambda n, k: {
        "qweight": ("uint8", (n, k // 2)),
        "scales": ("uint8", (n, k // 32)),
        "forward_hadamard_matrix": ("bfloat16", (32, 32)),
        "backward_hadamard_matrix": ("bfloat16", (32, 32)),
        "weight_global_scale": ("float32", (1,)),
        "act_global_scale": ("float32", (1,)),
    }
)
_SINQ = _only(
    lambda n, k: {
        "W_q": ("uint8", (n, k // 2)),
        "meta.scale": ("float16", (n, k // 64)),
        "meta.zero": ("float16", (n, k // 64)),
        "meta.scale2": ("float16", (1, k)),
    }
)
_FOUR_OVER_SIX = _only(
    lambda n, k: {
        "quantized_weight_values": ("uint8", (n, k // 2)),
        "quantized_weight_scale_factors": ("uint8", (n, k // 16)),
        "quantized_weight_amax": ("float32", (1,)),
        "quantized_weight_metadata": ("int32", (4,)),
    }
)


def _ct_config(layout: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def _ct_weights(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


_PER_TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True}
_CT_NVFP4 = ("weight_packed", "weight_scale", "weight_global_scale", "")
_MODELOPT = ("weight", "weight_scale", "weight_scale_2", "input_scale")
_TERNARY = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}
_TORCHAO = {
    "quant_method": "torchao",
    "quant_type": {
        "default": {
            "_type": "Int8WeightOnlyConfig",
            "_data": {"granularity": {"_type": "PerRow", "_data": {"dim": -1}}, "set_inductor_config": True},
            "_version": 2,
        }
    },
}
_QUARK_SPEC = {
    **dict.fromkeys(("ch_axis", "group_size")),
    "dtype": "fp8_e4m3",
    "is_dynamic": False,
    "qscheme": "per_tensor",
    "observer_cls": "PerTensorMinMaxObserver",
    "round_method": "half_even",
    "scale_type": "float",
    "symmetric": None,
}
FORMATS: dict[str, Format] = {
    "awq": Format(_awq, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
    "gptq": Format(_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False, "desc_act": False}),
    "auto-round": Format(
        lambda weight: _gptq(weight, with_order=False),
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": False, "data_type": "int", "iters": 200,
         "autoround_version": "0.9.2", "packing_format": "auto_round:auto_gptq"},
    ),
    "compressed-tensors int4": Format(
        _ct_int4, _ct_config("pack-quantized", _ct_weights(4, "int", "group", group_size=128))
    ),
    "compressed-tensors int8": Format(
        _int8,
        _ct_config("int-quantized", _ct_weights(8, "int", "channel"), {"num_bits": 8, "type": "int", **_PER_TOKEN}),
    ),
    "compressed-tensors fp8": Format(
        _ct_fp8,
        _ct_config(
            "float-quantized", _ct_weights(8, "float", "channel"), {"num_bits": 8, "type": "float", **_PER_TOKEN}
        ),
    ),
    "compressed-tensors nvfp4": Format(
        lambda weight: _nvfp4(weight, names=_CT_NVFP4),
        _ct_config("nvfp4-pack-quantized", _ct_weights(4, "float", "tensor_group", group_size=16)),
    ),
    "bitnet": Format(_bitnet, _TERNARY),
    "bitnet autobitlinear": Format(
        lambda weight: _bitnet(weight, divides=False), {**_TERNARY, "linear_class": "autobitlinear"}
    ),
    "hqq": Format(
        _HQQ,
        {"quant_method": "hqq", "skip_modules": ["lm_head"],
         "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}},
    ),
    "eetq": Format(_EETQ, {"quant_method": "eetq", "weights": "int8"}),
    "torchao": Format(
        lambda weight: _torchao(weight),
        _TORCHAO,
    ),
    "quark": Format(
        lambda weight: _quark(weight),
        {"quant_method": "quark", "export": {"pack_method": "reorder", "weight_format": "real_quantized"},
         "global_quant_config": {"weight": _QUARK_SPEC, "input_tensors": _QUARK_SPEC, "output_tensors": None,
                                 "bias": None, "target_device": None}, "exclude": ["lm_head"],
         "layer_quant_config": {}, "layer_type_quant_config": {}, "quant_mode": "eager_mode", "algo_config": None},
    ),
    "fbgemm_fp8": Format(_fbgemm, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "fp8": Format(_fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}),
    "mxfp8": Format(
        lambda weight: _fp8(weight, block=(1, 32), exponents=True),
        {"quant_method": "mxfp8", "activation_scheme": "dynamic", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"},
    ),
    "mxfp4": Format(
        _mxfp4,
        {"quant_method": "mxfp4",
         "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]},
        architecture="gpt_oss",
        packs_experts=True,
    ),
    "modelopt": Format(
        lambda weight: _nvfp4(weight, names=_MODELOPT),
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"],
         "producer": {"name": "modelopt", "version": "0.29.0"}},
    ),
    "nvfp4": Format(lambda weight: _nvfp4(weight, names=_MODELOPT), {"quant_method": "nvfp4"}),
    "mlx": Format(lambda weight: _affine(weight, biases="biases"), {"group_size": 64, "bits": 4}, key="quantization"),
    "metal": Format(
        lambda weight: _affine(weight, biases="qbiases"), {"quant_method": "metal", "bits": 4, "group_size": 64}
    ),
    "quanto": Format(_QUANTO, {"quant_method": "quanto", "weights": "int8"}),
    "higgs": Format(_HIGGS, {"quant_method": "higgs", "bits": 4, "group_size": 256, "hadamard_size": 512}),
    "spqr": Format(_SPQR, {"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16}),
    "vptq": Format(_VPTQ, {"quant_method": "vptq"}),
    "aqlm": Format(
        _aqlm,
        {"quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 2, "nbits_per_codebook": 8,
         "linear_weights_not_to_quantize": ["lm_head.weight"]},
    ),
    "fp_quant": Format(_FP_QUANT, {"quant_method": "fp_quant", "forward_dtype": "mxfp4"}),
    "sinq": Format(_SINQ, {"quant_method": "sinq", "nbits": 4, "group_size": 64}),
    "fouroversix": Format(_FOUR_OVER_SIX, {"quant_method": "fouroversix", "dtype": "nvfp4"}),
    "gemma": Format(_gemma, {"quant_method": "gemma", "num_bits": 8}),
}  # fmt: skip


def _torchao(weight: "Tensor") -> Parts:
    import torch

    codes, scale = _symmetric(weight, 127)
    return {"_weight_qdata": codes.to(torch.int8), "_weight_scale": scale.bfloat16()}


def _quark(weight: "Tensor") -> Parts:
    import torch

    scale = weight.float().abs().amax() / 448
    return {
        "weight": (weight.float() / scale).to(torch.float8_e4m3fn),
        "weight_scale": scale,
        "input_scale": torch.ones(()),
    }


def _metadata(name: str, tensors: Mapping[str, "Tensor"]) -> dict[str, str]:
    """torchao describes its tensors in the header of the file."""
    if name != "torchao":
        return {}
    quantised = sorted(key.removesuffix("._weight_qdata") for key in tensors if key.endswith("._weight_qdata"))
    others = [key for key in tensors if "._weight_" not in key]
    described = {key: {"_type": "Tensor"} for key in others}
    for module in quantised:
        described[f"{module}.weight"] = {
            "_type": "Int8Tensor",
            "_data": {
                "block_size": [1, tensors[f"{module}._weight_qdata"].shape[1]],
                "dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
                "act_quant_kwargs": None,
            },
            "_tensor_data_names": ["qdata", "scale"],
        }
    names = [*others, *(f"{module}.weight" for module in quantised)]
    return {key: json.dumps(value) for key, value in described.items()} | {"tensor_names": json.dumps(names)}


def _layer_settings(name: str, tensors: Mapping[str, "Tensor"]) -> dict[str, Any]:
    """SpQR and VPTQ describe every layer in config.json."""
    if name == "spqr":
        parts = ("dense_weights", "row_offsets", "col_vals", "in_perm")
        return {"shapes": {f"{key}.shape": len(value) for key, value in tensors.items() if key.endswith(parts)}}
    if name == "vptq":
        layer = {"vector_lens": [-1, 8], "num_centroids": [-1, 256], "num_res_centroids": [-1, -1], "group_num": 1,
                 "group_size": 128, "outlier_size": 0, "indices_as_float": False, "enable_norm": True,
                 "enable_perm": True, "is_indice_packed": True}  # fmt: skip
        modules = [key.removesuffix(".indices") for key in tensors if key.endswith(".indices")]
        return {"config_for_layers": dict.fromkeys(modules, layer), "shared_layer_config": {}}
    return {}
