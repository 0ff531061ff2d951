"""The formats of pre-quantised checkpoints on the Hub, a row for each.

Read from transformers 5.18 and 5.24 (quantizers/quantizer_*.py, utils/quantization_config.py), and tried on a CPU with
tiny checkpoints of every format (`make test-prequantized`). What is said of GPUs is read from the source, not tried.
bitsandbytes and llmctl's own format are backends and have no row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmctl.quant.backend import FLOATS, Quantization
from llmctl.quant.mxfp4 import LAYOUT as MXFP4_LAYOUT
from llmctl.quant.mxfp4 import Mxfp4
from llmctl.quant.stored_format import Layout, Package, Settings, StoredFormat, Support
from llmctl.quant.stored_weights import decompress, keep_named_modules, unpack_while_loading, use_requested_dtype

if TYPE_CHECKING:
    from llmctl.model.checkpoint import Tensor

GPTQMODEL = Package("gptqmodel", "gptqmodel", "1.4.3")
OPTIMUM = Package("optimum", "optimum", "1.24.0")
AUTO_ROUND = Package("auto-round", "auto_round", "0.5")
AUTO_ROUND_KERNELS = Package("auto-round-lib", "auto_round_kernel")
COMPRESSED_TENSORS = Package("compressed-tensors", "compressed_tensors", "0.15")
TORCHAO = Package("torchao", "torchao", "0.15")
AQLM_CPU = Package("aqlm", "aqlm", "1.1", extra="[cpu]")
NUMBA = Package("numba", "numba")
AQLM_GPU = Package("aqlm", "aqlm", "1.1", extra="[gpu]")
QUARK = Package("amd-quark", "quark", "0.12")
FBGEMM = Package("fbgemm-gpu-genai", "fbgemm_gpu")
FP_QUANT = Package("fp_quant", "fp_quant", "0.3.2")
VPTQ = Package("vptq", "vptq", "0.0.4")
FOUR_OVER_SIX = Package("fouroversix", "fouroversix", "1.0", options="--no-build-isolation")

_NEEDS_GPU = "can be loaded on an NVIDIA GPU only"
_APPLE = Support(refusal="are not supported on an Apple GPU")
_HUB_KERNELS = Support(reason="layers for it are compiled code from the Hub, which llmctl does not download")
_VLLM_KERNELS = replace(_HUB_KERNELS, reason=f"{_HUB_KERNELS.reason}; vLLM brings its own (--engine vllm)")
_UNPACK = ('settings["dequantize"] = True',)
_FP8 = {"cpu": Support(reason="transformers multiplies in it on GPUs only"), "cuda": _VLLM_KERNELS, "mps": _APPLE}


def _refused(reason: str) -> dict[str, Support]:
    return dict.fromkeys(("cpu", "cuda", "mps"), Support(refusal=reason))


def _gpu_only(support: Support) -> dict[str, Support]:
    return {**_refused(_NEEDS_GPU), "cuda": support}


def _everywhere(support: Support, *, on_apple: bool = True) -> dict[str, Support]:
    return {"cpu": support, "cuda": support, "mps": support if on_apple else _APPLE}


def _bits(tensor: "Tensor", settings: Settings) -> int:
    """Return the `bits` of a configuration."""
    bits = settings.get("bits")
    return bits if isinstance(bits, int) and 1 <= bits <= 16 else 0


def _fp8_bits(tensor: "Tensor", settings: Settings) -> int:
    """Return 4 for experts that hold two values in a byte (DeepSeek V4), else 8."""
    return 8 if tensor.dtype.startswith("F8") else 4


def _compressed_bits(tensor: "Tensor", settings: Settings) -> int:
    """Return the bits of a compressed-tensors weight: one value in a byte, two (FP4), or several in a word."""
    if tensor.dtype == "U8":
        return 4
    return 8 if tensor.dtype != "I32" else next((bits for bits, kind in _schemes(settings) if kind == "int"), 0)


def _schemes(settings: Settings) -> list[tuple[int, str]]:
    """Return bits and type, `int` or `float`, of the weights of each group of compressed-tensors."""
    groups = settings.get("config_groups")
    values = groups.values() if isinstance(groups, dict) else ()
    schemes = [group.get("weights") for group in values if isinstance(group, dict)]
    found = [(scheme.get("num_bits"), str(scheme.get("type"))) for scheme in schemes if isinstance(scheme, dict)]
    return [(bits, kind) for bits, kind in found if isinstance(bits, int) and 1 <= bits <= 16]


def _compressed_label(settings: Settings) -> str:
    kinds = {f"{'fp' if kind == 'float' else 'int'}{bits}": None for bits, kind in _schemes(settings)}
    return f"compressed-tensors {' and '.join(kinds)} ({settings.get('format')})"


def _gemma_bits(tensor: "Tensor", settings: Settings) -> int:
    bits = settings.get("num_bits")
    return 8 if tensor.dtype == "I8" else bits if bits in (2, 4, 8) else 4


def _auto_round_bytes(tensor: "Tensor", settings: Settings) -> int | None:
    """Return the bytes of a tensor after auto-round-lib has repacked it.

    Measured with auto-round-lib 0.16: outputs are padded to a multiple of 24, scales become float32, and zero points,
    if the quantisation is asymmetric, int8.
    """
    bits = _bits(tensor, settings)
    if not bits or len(tensor.shape) != 2 or not tensor.name.endswith((".qweight", ".qzeros", ".scales")):
        return None
    groups, columns = tensor.shape
    outputs = columns * 32 // bits if tensor.name.endswith(".qzeros") else columns
    padded = -(-outputs // 24) * 24
    if tensor.name.endswith(".qweight"):
        return tensor.size_bytes * padded // outputs + 128
    if tensor.name.endswith(".scales"):
        return padded * groups * 4
    return 0 if settings.get("sym", True) else padded * groups


_COMPRESSED_LAYOUT = Layout(
    ("weight", "weight_packed"),
    ("weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape"),
    _compressed_bits,
)
_COMPRESSED = Support(
    packages=(COMPRESSED_TENSORS,), reason="compressed-tensors has no layers that multiply by them in transformers"
)
_UNPACKING_LAYERS = Support(reason="layers of transformers that unpack at every product: slow")
_AUTO_BITNET = "bitnet (autobitlinear)"
_AUTO_TERNARY = Support(reason="its layers in transformers multiply by unpacked weights")
_TERNARY_LAYOUT = Layout(("weight",), ("weight_scale",), lambda tensor, settings: 2)
_GPTQ_LAYOUT = Layout(("qweight",), ("qzeros", "scales", "g_idx"), _bits)
_GPTQ_SUPPORT = Support(packages=(OPTIMUM, GPTQMODEL), reason="layers of gptqmodel, compiled at the first use")
_AWQ_ON_GPU = Support(packages=(GPTQMODEL,), dtypes=("float16",), reason="layers of gptqmodel")

FORMATS: tuple[StoredFormat, ...] = (
    StoredFormat(
        "fp8",
        _FP8,
        Layout(("weight",), ("weight_scale_inv", "activation_scale", ".scale", ".qscale_weight"), _fp8_bits),
        unpacks=True,
        adapt=unpack_while_loading,
        edits=_UNPACK,
        finish=use_requested_dtype,
        can_split=True,
        imports_compiler=False,
        vllm_method="fp8",
    ),
    StoredFormat(
        "mxfp8",
        _FP8,
        Layout(("weight",), ("weight_scale_inv",), _fp8_bits),
        unpacks=True,
        adapt=unpack_while_loading,
        edits=_UNPACK,
        finish=use_requested_dtype,
        can_split=True,
        imports_compiler=False,
        vllm_method="mxfp8",
    ),
    Mxfp4(
        "mxfp4",
        {**_everywhere(_HUB_KERNELS), "cuda": _VLLM_KERNELS},
        MXFP4_LAYOUT,
        unpacks=True,
        adapt=unpack_while_loading,
        edits=_UNPACK,
        finish=use_requested_dtype,
        can_split=True,
        imports_compiler=False,
        vllm_method="mxfp4",
    ),
    StoredFormat(
        "metal",
        _everywhere(_HUB_KERNELS),
        Layout(("weight",), ("scales", "qbiases"), _bits),
        unpacks=True,
        adapt=unpack_while_loading,
        edits=_UNPACK,
        finish=use_requested_dtype,
        can_split=True,
        imports_compiler=False,
    ),
    StoredFormat(
        "compressed-tensors",
        _everywhere(_COMPRESSED, on_apple=False),
        _COMPRESSED_LAYOUT,
        label_of=_compressed_label,
        unpacks=True,
        finish=decompress,
        vllm_method="compressed-tensors",
    ),
    StoredFormat(
        "bitnet",
        {"cpu": replace(_UNPACKING_LAYERS, needs_compiler=True), "cuda": _UNPACKING_LAYERS, "mps": _APPLE},
        _TERNARY_LAYOUT,
        label_of=lambda settings: "bitnet 1.58-bit",
    ),
    StoredFormat(
        _AUTO_BITNET,
        {"cpu": replace(_AUTO_TERNARY, needs_compiler=True), "cuda": _AUTO_TERNARY, "mps": _APPLE},
        _TERNARY_LAYOUT,
        label_of=lambda settings: "bitnet 1.58-bit (autobitlinear)",
        unpacks=True,
        finish=use_requested_dtype,
    ),
    StoredFormat(
        "gemma",
        _everywhere(_UNPACKING_LAYERS),
        Layout(("weight", "embedding_quantized"), ("weight_scale", "activation_scale"), _gemma_bits),
    ),
    StoredFormat(
        "gptq",
        {"cpu": _GPTQ_SUPPORT, "cuda": _GPTQ_SUPPORT, "mps": _APPLE},
        _GPTQ_LAYOUT,
        vllm_method="gptq",
    ),
    StoredFormat(
        "awq",
        {"cpu": Support(packages=(GPTQMODEL,), reason=_GPTQ_SUPPORT.reason), "cuda": _AWQ_ON_GPU, "mps": _APPLE},
        _GPTQ_LAYOUT,
        vllm_method="awq",
    ),
    StoredFormat(
        "auto-round",
        {
            "cpu": Support(packages=(AUTO_ROUND, AUTO_ROUND_KERNELS), reason="layers of auto-round"),
            "cuda": Support(packages=(AUTO_ROUND,), reason="layers of auto-round"),
            "mps": _APPLE,
        },
        Layout(_GPTQ_LAYOUT.packed, _GPTQ_LAYOUT.beside, _bits, _auto_round_bytes),
        vllm_method="auto-round",
    ),
    StoredFormat(
        "torchao",
        _everywhere(Support(packages=(TORCHAO,), reason="tensors of torchao"), on_apple=False),
        Layout(("_qdata",), ("_scale", "_zero_point", "_scale_and_zero", "_act_pre_scale"), lambda tensor, settings: 0),
        can_split=True,
        vllm_method="torchao",
    ),
    StoredFormat(
        "aqlm",
        {
            "cpu": Support(
                packages=(AQLM_CPU, NUMBA),
                dtypes=("float32",),
                reason="layers of aqlm on one thread, since its kernel for CPUs adds wrongly on several",
                environment={"NUMBA_NUM_THREADS": "1"},
            ),
            "cuda": Support(packages=(AQLM_GPU,), dtypes=("float16", "bfloat16"), reason="layers of aqlm"),
            "mps": _APPLE,
        },
        adapt=keep_named_modules,
        edits=(
            'names = settings["linear_weights_not_to_quantize"]',
            'settings["linear_weights_not_to_quantize"] = [name.removesuffix(".weight") for name in names]',
        ),
    ),
    StoredFormat(
        "quark",
        _everywhere(Support(packages=(QUARK,), reason="layers of quark"), on_apple=False),
        vllm_method="quark",
    ),
    StoredFormat(
        "fbgemm_fp8",
        _gpu_only(Support(packages=(FBGEMM,), capability=(9, 0), dtypes=("bfloat16",), reason="kernels of fbgemm")),
        vllm_method="fbgemm_fp8",
    ),
    StoredFormat(
        "fp_quant",
        _gpu_only(Support(packages=(FP_QUANT,), capability=(9, 0), dtypes=("bfloat16",), reason="layers of fp_quant")),
    ),
    StoredFormat(
        "vptq",
        _gpu_only(Support(packages=(VPTQ,), dtypes=("float16", "bfloat16"), reason="layers of vptq")),
    ),
    StoredFormat(
        "fouroversix",
        _gpu_only(Support(packages=(FOUR_OVER_SIX,), dtypes=("bfloat16",), reason="layers of fouroversix")),
    ),
    StoredFormat("eetq", _refused("need compiled code from the Hub, which llmctl does not download")),
    StoredFormat("hqq", _refused("cannot be read by transformers 5, which only quantises to it"), vllm_method="hqq"),
    StoredFormat("quanto", _refused("cannot be read by transformers 5, which only quantises to it")),
    StoredFormat("sinq", _refused("cannot be read by transformers 5 from safetensors")),
    StoredFormat("nvfp4", _refused("cannot be read by transformers 5, which only quantises to it")),
    StoredFormat("spqr", _refused("need spqr_quant, whose newest release, 0.2.0, does not fit transformers 5")),
    StoredFormat("higgs", _refused("need flute-kernel, whose newest release, 0.4.2, does not fit this torch")),
    StoredFormat("modelopt", _refused("(NVIDIA ModelOpt) cannot be read by transformers 5"), vllm_method="modelopt"),
    StoredFormat("mlx", _refused("(Apple's MLX) are read by mlx-lm only")),
    StoredFormat("gguf", _refused("are not read by llmctl yet"), vllm_method="gguf"),
)
_BY_NAME = {row.name: row for row in FORMATS}
_ALIASES = {"intel/auto-round": "auto-round", "compressed_tensors": "compressed-tensors", "modelopt_fp4": "modelopt"}


def packages_of_formats() -> tuple[Package, ...]:
    """Return every package that a format needs, once."""
    needed = (package for row in FORMATS for support in row.support.values() for package in support.packages)
    return tuple({package.name: package for package in needed}.values())


def has_packed_weights(tensors: Sequence["Tensor"]) -> bool:
    """Return True if a checkpoint holds packed matrices and their scales, as far as names and dtypes show."""
    is_packed = any(
        tensor.dtype not in FLOATS and len(tensor.shape) == 2 and tensor.name.endswith(("weight", "weight_packed"))
        for tensor in tensors
    )
    return is_packed and any(
        tensor.name.endswith(("_scale", "_scale_inv", "_scale_2", ".scales")) for tensor in tensors
    )


def find_format(stored: Mapping[str, Any]) -> Quantization:
    """Return the quantisation that a `quantization_config` means; an unknown format is one that nothing loads."""
    method = stored.get("quant_method")
    if method is None and {"bits", "group_size"} <= stored.keys():
        method = "mlx"  # mlx-lm writes its settings under both keys, without a method
    name = _ALIASES.get(str(method), str(method))
    if name == "bitnet" and stored.get("linear_class") == "autobitlinear":
        name = _AUTO_BITNET
    row = _BY_NAME.get(name)
    if row is None and method is None:
        row = StoredFormat("unknown", _refused("are packed, and config.json does not say how (quantization_config)"))
    elif row is None:
        reason = "are not known to llmctl, and transformers may not read them"
        row = StoredFormat(str(method)[:40], _refused(reason), vllm_method=str(method)[:40])
    return row.recognise(stored)
