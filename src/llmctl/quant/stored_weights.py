"""Actions on pre-quantised weights: changes of the configuration that transformers reads, and of the loaded model."""

from importlib import import_module
from typing import Any

_DESCRIBE_PACKED_WEIGHTS = ("weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape")


def unpack_while_loading(settings: dict[str, Any]) -> None:
    """Let transformers unpack the weights while it loads, on every device.

    It does so by itself where the device or a package is missing (quantizer_finegrained_fp8.py, quantizer_mxfp4.py,
    quantizer_metal.py); elsewhere it would download compiled code from the Hub.
    """
    settings["dequantize"] = True


def keep_named_modules(settings: dict[str, Any]) -> None:
    """Name the modules that AQLM leaves unquantised as transformers 5 compares them: without `.weight`.

    Checkpoints list weights (`lm_head.weight`), and transformers 5 would expect a quantised output head.
    """
    key = "linear_weights_not_to_quantize"
    names = settings.get(key)
    if isinstance(names, list):
        settings[key] = [str(name).removesuffix(".weight") for name in names]


def use_requested_dtype(model: Any) -> None:
    """Convert half-precision weights to the requested dtype.

    transformers 5.24 leaves all weights of a Metal, AutoBitLinear or bitsandbytes checkpoint in the checkpoint's dtype,
    and 5.18 unpacks MXFP4 to bfloat16.
    """
    import torch

    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.to(model.config.dtype)


def decompress(model: Any) -> None:
    """Unpack the weights of compressed-tensors, as transformers would before the first forward pass.

    Until then the linear layers have no `weight`. Layers whose activations are not quantised become ordinary ones.
    """
    hook = vars(model).pop("ct_decompress_hook", None)
    if hook is None:
        return
    decompress_module = import_module("compressed_tensors.compressors.base").decompress_module
    hook.remove()
    for module in model.modules():
        scheme = vars(module).get("quantization_scheme")
        if scheme is None:
            continue
        decompress_module(module)
        module.weight.data = module.weight.data.to(model.dtype)  # NVFP4 becomes bfloat16, whatever the model's dtype is
        for name in _DESCRIBE_PACKED_WEIGHTS:
            module._parameters.pop(name, None)
        if scheme.input_activations is None and scheme.output_activations is None:
            vars(module).pop("forward", None)
