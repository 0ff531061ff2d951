"""llmctl's own format in transformers' registry. Importing this module registers it.

`AutoModelForCausalLM.from_pretrained(model, quantization_config=LlmctlConfig(bits=4))` quantises while loading, and
`save_pretrained` writes a folder that `from_pretrained` reads.
"""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmctl.cpu import layers
from llmctl.cpu.expert_stacks import read_as_stacks
from llmctl.cpu.layers import ROWS_TOGETHER, Packed, PackedLinear, packed_parameter_class
from llmctl.cpu.packing import QUANT_METHOD
from llmctl.machine.mapped_files import MappedFiles
from llmctl.quant.direct_reads import weights_read_directly
from llmctl.quant.packed_modules import Packing, pack_modules, packed_names, stored_sizes, unpacked_shape
from llmctl.quant.torch_packed_weight import TorchPacked
from llmctl.transformers_compat import modules_kept_in_float32, save_under_loaded_names

FORMAT = 1  # increase it when the layout of packed weights changes
_PIECE_BYTES = 64 << 20  # bytes of a weight that are quantised at a time


@register_quantization_config(QUANT_METHOD)
class LlmctlConfig(QuantizationConfigMixin):
    """The settings of packed weights, as stored in config.json.

    Attributes:
        bits: Bits of linear layers and experts, 8 or 4 (8.5 or 4.5 with the scales).
        head_bits: Bits of the output head and of an embedding tied to it; None leaves them unquantised.
        skip_modules: Names of modules that are not quantised.
        format: The version of the layout.
        kernels: The kernels that multiply: `llmctl`, or `torch`, whose layout has the head in 8 bits and cannot be
            saved.
    """

    def __init__(
        self,
        bits: int = 4,
        head_bits: int | None = 8,
        skip_modules: list[str] | None = None,
        format: int = FORMAT,
        kernels: Literal["llmctl", "torch"] = "llmctl",
        **_: Any,
    ) -> None:
        if bits not in (4, 8) or head_bits not in (None, 4, 8):
            raise ValueError("bits is 4 or 8, head_bits is 4, 8 or None")
        if format != FORMAT:
            raise ValueError(f"the weights are packed in format {format}, this llmctl reads format {FORMAT}")
        self.quant_method = QUANT_METHOD
        self.bits, self.head_bits, self.skip_modules, self.format = bits, head_bits, skip_modules, format
        self.kernels = kernels
        if kernels == "torch" and head_bits is not None:
            self.head_bits = 8


@register_quantizer(QUANT_METHOD)
class LlmctlQuantizer(HfQuantizer):
    """Replaces the layers of an empty model with packed ones, and fills them from unpacked or packed weights."""

    quantization_config: LlmctlConfig

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Raise RuntimeError without compiled kernels, and ValueError for devices other than the CPU."""
        if self.quantization_config.kernels == "llmctl":
            layers.native()
        devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map or "cpu"}
        if any(str(device) not in ("cpu", "auto") for device in devices):
            raise ValueError("weights in llmctl's own format run on CPUs only: use device_map cpu")

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = self.quantization_config
        self.dtype = kwargs.get("dtype") or torch.get_default_dtype()
        files = kwargs.get("checkpoint_files") or ()
        self.files = MappedFiles(files)
        packing = Packing(
            packed_class=TorchPacked if config.kernels == "torch" else Packed,
            bits=config.bits,
            head_bits=config.head_bits,
            skipped=(*(config.skip_modules or ()), *modules_kept_in_float32(model), *_read_directly(model)),
            stored=stored_sizes(files) if self.pre_quantized else None,
        )
        with torch.device("meta"):
            pack_modules(model, packing, dtype=self.dtype)
        if not self.pre_quantized:
            _expect_floats(model, self.dtype)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        save_under_loaded_names(model)
        self._pack_rest(model)
        _cut_biases(model)
        _show_float_dtypes(model, self.dtype)
        read_as_stacks(model)
        self.files = MappedFiles(())
        return model

    def _pack_rest(self, model: Any) -> None:
        """Pack weights that transformers passed by: of a tensor that is divided, it asks about the first part only."""
        packed: dict[int, nn.Parameter] = {}
        for prefix, module in model.named_modules():
            for name in packed_names(module):
                parameter = module._parameters[name]
                if parameter.dtype == torch.uint8 or parameter.is_meta:
                    continue
                if id(parameter) not in packed:
                    full_name = f"{prefix}.{name}"
                    data = Pack(self).convert({full_name: parameter.data}, model=model)[full_name]
                    packed[id(parameter)] = nn.Parameter(data, requires_grad=False)
                module._parameters[name] = packed[id(parameter)]

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Return True if a parameter is a packed weight."""
        module, name = get_module_from_name(model, param_name)
        return name in packed_names(module)

    def get_quantize_ops(self) -> "Pack":
        """Return the operation that packs a weight."""
        return Pack(self)

    def is_serializable(self) -> bool:
        """Return True if the weights can be saved: those for torch's kernels cannot."""
        return self.quantization_config.kernels == "llmctl"

    @property
    def is_trainable(self) -> bool:
        """False: packed weights cannot be trained."""
        return False


class Pack(ConversionOps):
    """Quantises one weight in pieces, and releases the mapped pages of its file."""

    def __init__(self, quantizer: LlmctlQuantizer) -> None:
        self.quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any = None, **__: Any) -> dict[str, Tensor]:
        """Pack weights, and return them by the names of the model's parameters."""
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            module, parameter_name = get_module_from_name(model, name)
            if parameter_name not in packed_names(module):  # one of several that a tensor was divided into
                result[name] = weight
                continue
            if weight.shape != module._parameters[parameter_name].shape:
                raise ValueError(f"{name} has the shape {list(weight.shape)}")
            if getattr(module, "is_transposed", False):
                weight = weight.transpose(-1, -2)
            if isinstance(module.packed, dict):
                result[name] = torch.stack([self._pack(expert, module.packed[parameter_name]) for expert in weight])
            else:
                result[name] = self._pack(weight, module.packed)
        return result

    def _pack(self, weight: Tensor, packed: Packed) -> Tensor:
        buffer = torch.empty(packed.size_bytes, dtype=torch.uint8)
        row_bytes = packed.k * weight.element_size()
        step = max(_PIECE_BYTES // row_bytes // ROWS_TOGETHER, 1) * ROWS_TOGETHER
        for start in range(0, packed.n, step):
            packed.pack_rows(buffer, start, weight[start : start + step].contiguous())
            self.quantizer.files.release_after(step * row_bytes)
        return buffer


def _expect_floats(model: Any, dtype: torch.dtype) -> None:
    """Give the empty model's packed weights their unpacked shapes and a float dtype until they are packed.

    transformers 5.18 casts a tensor to the dtype of its parameter before it packs it, and some conversions of names
    divide a tensor by the shapes of its parameters.
    """
    for module in model.modules():
        for name in packed_names(module):
            empty = torch.empty(unpacked_shape(module, name), dtype=dtype, device="meta")
            setattr(module, name, nn.Parameter(empty, requires_grad=False))


def _cut_biases(model: Any) -> None:
    """Undo the padding of biases: transformers pads that of a tied head to the first dimension of its weight."""
    for module in model.modules():
        if isinstance(module, PackedLinear) and module.bias is not None:
            module.bias.data = module.bias.data[: module.out_features]


def _show_float_dtypes(model: Any, dtype: torch.dtype) -> None:
    """Let packed weights report the model's dtype: some models cast hidden states to the dtype of a weight."""
    shown: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name in packed_names(module):
            parameter = module._parameters[name]
            if id(parameter) not in shown:
                shown[id(parameter)] = packed_parameter_class(dtype)(parameter.data, requires_grad=False)
            module._parameters[name] = shown[id(parameter)]


def _read_directly(model: Any) -> tuple[str, ...]:
    module = inspect.getmodule(type(model))
    return () if module is None else weights_read_directly(inspect.getsource(module), model.config.to_dict())
