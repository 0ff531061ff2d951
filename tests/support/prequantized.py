"""Tiny checkpoints in the pre-quantised formats of the Hub, written without the formats' packages.

Every format has the names, dtypes and shapes of real checkpoints. Formats that load on a CPU hold real quantised
numbers, so that their text can be compared; the others hold random ones.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import packing
from support.packing import Parts
from support.tiny import edit_json, write_model

if TYPE_CHECKING:
    from torch import Tensor

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
    """Write the tiny checkpoint of a format of `FORMATS` or, with the package itself, of `BITSANDBYTES`."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if name in BITSANDBYTES:
        return _write_bitsandbytes(folder, BITSANDBYTES[name])
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
_GROUPS = {"bits": 4, "group_size": 128}
_DYNAMIC = {"activation_scheme": "dynamic"}
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "bitsandbytes 8-bit": {"load_in_8bit": True},
    "bitsandbytes 4-bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
FORMATS: dict[str, Format] = {
    "awq": Format(packing.awq, {"quant_method": "awq", **_GROUPS, "zero_point": True, "version": "gemm"}),
    "gptq": Format(packing.gptq, {"quant_method": "gptq", **_GROUPS, "sym": False, "desc_act": False}),
    "auto-round": Format(
        lambda weight: packing.gptq(weight, with_order=False),
        {"quant_method": "auto-round", **_GROUPS, "sym": False, "data_type": "int", "iters": 200,
         "autoround_version": "0.9.2", "packing_format": "auto_round:auto_gptq"},
    ),
    "compressed-tensors int4": Format(
        packing.ct_int4, _ct_config("pack-quantized", _ct_weights(4, "int", "group", group_size=128))
    ),
    "compressed-tensors int8": Format(
        packing.int8,
        _ct_config("int-quantized", _ct_weights(8, "int", "channel"), {"num_bits": 8, "type": "int", **_PER_TOKEN}),
    ),
    "compressed-tensors fp8": Format(
        packing.ct_fp8,
        _ct_config(
            "float-quantized", _ct_weights(8, "float", "channel"), {"num_bits": 8, "type": "float", **_PER_TOKEN}
        ),
    ),
    "compressed-tensors nvfp4": Format(
        lambda weight: packing.nvfp4(weight, names=_CT_NVFP4),
        _ct_config("nvfp4-pack-quantized", _ct_weights(4, "float", "tensor_group", group_size=16)),
    ),
    "bitnet": Format(packing.bitnet, _TERNARY),
    "bitnet autobitlinear": Format(
        lambda weight: packing.bitnet(weight, divides=False), {**_TERNARY, "linear_class": "autobitlinear"}
    ),
    "hqq": Format(
        packing.hqq,
        {"quant_method": "hqq", "skip_modules": ["lm_head"],
         "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}},
    ),
    "eetq": Format(packing.eetq, {"quant_method": "eetq", "weights": "int8"}),
    "torchao": Format(
        packing.torchao,
        _TORCHAO,
    ),
    "quark": Format(
        packing.quark,
        {"quant_method": "quark", "export": {"pack_method": "reorder", "weight_format": "real_quantized"},
         "global_quant_config": {"weight": _QUARK_SPEC, "input_tensors": _QUARK_SPEC, "output_tensors": None,
                                 "bias": None, "target_device": None}, "exclude": ["lm_head"],
         "layer_quant_config": {}, "layer_type_quant_config": {}, "quant_mode": "eager_mode", "algo_config": None},
    ),
    "fbgemm_fp8": Format(packing.fbgemm, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "fp8": Format(packing.fp8, {"quant_method": "fp8", **_DYNAMIC, "weight_block_size": [128, 128]}),
    "mxfp8": Format(
        lambda weight: packing.fp8(weight, block=(1, 32), exponents=True),
        {"quant_method": "mxfp8", **_DYNAMIC, "weight_block_size": [1, 32], "scale_fmt": "ue8m0"},
    ),
    "mxfp4": Format(
        packing.mxfp4,
        {"quant_method": "mxfp4",
         "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]},
        architecture="gpt_oss",
        packs_experts=True,
    ),
    "modelopt": Format(
        lambda weight: packing.nvfp4(weight, names=_MODELOPT),
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"],
         "producer": {"name": "modelopt", "version": "0.29.0"}},
    ),
    "nvfp4": Format(lambda weight: packing.nvfp4(weight, names=_MODELOPT), {"quant_method": "nvfp4"}),
    "mlx": Format(
        lambda weight: packing.affine(weight, biases="biases"), {"group_size": 64, "bits": 4}, key="quantization"
    ),
    "metal": Format(
        lambda weight: packing.affine(weight, biases="qbiases"), {"quant_method": "metal", "bits": 4, "group_size": 64}
    ),
    "quanto": Format(packing.quanto, {"quant_method": "quanto", "weights": "int8"}),
    "higgs": Format(packing.higgs, {"quant_method": "higgs", "bits": 4, "group_size": 256, "hadamard_size": 512}),
    "spqr": Format(packing.spqr, {"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16}),
    "vptq": Format(packing.vptq, {"quant_method": "vptq"}),
    "aqlm": Format(
        packing.aqlm,
        {"quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 2, "nbits_per_codebook": 8,
         "linear_weights_not_to_quantize": ["lm_head.weight"]},
    ),
    "fp_quant": Format(packing.fp_quant, {"quant_method": "fp_quant", "forward_dtype": "mxfp4"}),
    "sinq": Format(packing.sinq, {"quant_method": "sinq", "nbits": 4, "group_size": 64}),
    "fouroversix": Format(packing.four_over_six, {"quant_method": "fouroversix", "dtype": "nvfp4"}),
    "gemma": Format(packing.gemma, {"quant_method": "gemma", "num_bits": 8}),
}  # fmt: skip


def _write_bitsandbytes(folder: Path, settings: Mapping[str, Any]) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    write_model(folder, **WIDTHS)
    config = BitsAndBytesConfig(**settings)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(str(folder))
    return folder


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
