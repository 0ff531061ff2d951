"""MXFP4 experts for llmctl's kernels in transformers' registry. Importing this module registers them.

transformers' own method for such checkpoints unpacks them on a CPU. A checkpoint is read by this one if the
`quant_method` of its configuration is replaced by `llmctl_mxfp4`.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmctl.cpu.expert_layers import EXPERT_WEIGHTS, has_expert_layout, pack_experts
from llmctl.cpu.layers import native
from llmctl.cpu.mxfp4 import Mxfp4Packed
from llmctl.cpu.packing import BLOCK, MXFP4_BLOCKS, MXFP4_QUANT_METHOD, MXFP4_SCALES
from llmctl.machine.mapped_files import MappedFiles
from llmctl.quant.packed_modules import packed_names


@register_quantization_config(MXFP4_QUANT_METHOD)
class KeptMxfp4Config(QuantizationConfigMixin):
    """The settings of an MXFP4 checkpoint.

    Attributes:
        modules_to_not_convert: Names and patterns of modules that are not in MXFP4.
    """

    def __init__(self, modules_to_not_convert: list[str] | None = None, **_: Any) -> None:
        self.quant_method = MXFP4_QUANT_METHOD
        self.modules_to_not_convert = modules_to_not_convert


@register_quantizer(MXFP4_QUANT_METHOD)
class KeptMxfp4Quantizer(HfQuantizer):
    """Replaces the experts of an empty model with packed ones, and fills them from blocks and exponents."""

    quantization_config: KeptMxfp4Config

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Raise RuntimeError without compiled kernels, and ValueError for devices other than the CPU."""
        native()
        devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map or "cpu"}
        if any(str(device) not in ("cpu", "auto") for device in devices):
            raise ValueError("MXFP4 weights are kept in 4 bits on CPUs only: use device_map cpu")

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        files = kwargs.get("checkpoint_files") or ()
        self.files = MappedFiles(files)
        skipped = self.quantization_config.modules_to_not_convert or []
        with torch.device("meta"):
            for name, module in model.named_modules():
                if has_expert_layout(module) and should_convert_module(name, skipped):
                    pack_experts(module, Mxfp4Packed, 4)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self.files = MappedFiles(())
        return model

    def get_weight_conversions(self) -> list[WeightConverter]:
        """Return a conversion for each projection of the experts."""
        return [
            WeightConverter([f"{name}{MXFP4_BLOCKS}", f"{name}{MXFP4_SCALES}"], name, [PackBlocks(self)])
            for name in EXPERT_WEIGHTS
        ]

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Return True if a parameter is a packed weight."""
        module, name = get_module_from_name(model, param_name)
        return name in packed_names(module)

    def is_serializable(self) -> bool:
        """Return False: the checkpoint's own files hold the same weights."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: packed weights cannot be trained."""
        return False


class PackBlocks(ConversionOps):
    """Packs one projection of all experts, expert by expert, and releases the mapped pages of its file."""

    def __init__(self, hf_quantizer: KeptMxfp4Quantizer) -> None:
        self.hf_quantizer = hf_quantizer  # transformers reads this name, and leaves the dtypes of the inputs alone

    def convert(
        self, input_dict: dict[str, Any], *_: Any, model: Any = None, full_layer_name: str = "", **__: Any
    ) -> dict[str, Tensor]:
        """Return the packed weight by the name of the model's parameter."""
        module, name = get_module_from_name(model, full_layer_name)
        packed, count = module.packed[name], len(module._parameters[name])
        blocks, exponents = (_only(input_dict[f"{name}{end}"]) for end in (MXFP4_BLOCKS, MXFP4_SCALES))
        if exponents.shape != (count, packed.n, packed.k // BLOCK) or blocks.shape != (*exponents.shape, BLOCK // 2):
            raise ValueError(f"{full_layer_name} has blocks {list(blocks.shape)} and scales {list(exponents.shape)}")
        weights = torch.empty((count, packed.size_bytes), dtype=torch.uint8)
        for weight, *parts in zip(weights, blocks, exponents, strict=True):
            packed.pack_blocks(weight, *parts)
            self.hf_quantizer.files.release_after(packed.size_bytes)
        return {full_layer_name: weights}


def _only(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor.contiguous()
