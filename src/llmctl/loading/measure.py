"""Facts about a model in memory, read from its modules and tensors rather than from the plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from llmctl.platform_support import peak_memory_bytes
from llmctl.quant import registry
from llmctl.transformers_compat import attention_of


@dataclass(frozen=True)
class Measured:
    """Facts about a loaded model.

    Attributes:
        model_class: Python class of the model.
        parameters: Number of parameters, tied ones counted once. A packed weight counts as the weights it encodes.
        dtype: Dtype of the weights that are not quantised.
        attn_implementation: Attention in use.
        quantization: `bitsandbytes 4-bit nf4, computing in bfloat16`, or `none`.
        device_map: Device of each part.
        device_bytes: Bytes of parameters and buffers by device.
        load_seconds: Seconds from the first import of transformers to a model ready to generate.
        peak_memory_bytes: Largest resident memory of this process so far.
    """

    model_class: str
    parameters: int
    dtype: str
    attn_implementation: str
    quantization: str
    device_map: Mapping[str, str]
    device_bytes: Mapping[str, int]
    load_seconds: float
    peak_memory_bytes: int


def measure(model: Any, *, load_seconds: float, parameters: int | None = None) -> Measured:
    """Return the facts about a model that has just been loaded.

    `parameters` is the number of parameters where the model itself cannot tell: some formats pack them in buffers.
    """
    devices = getattr(model, "hf_device_map", None) or {"": model.device}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return Measured(
        model_class=type(model).__name__,
        parameters=parameters or registry.parameter_count(model),
        dtype=str(dtype).removeprefix("torch."),
        attn_implementation=attention_of(model.config),
        quantization=registry.describe(model),
        device_map={name: _device_name(device) for name, device in devices.items()},
        device_bytes=_device_bytes(model),
        load_seconds=load_seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _device_name(device: Any) -> str:
    """Return the name of a device of a device map, where GPUs may be numbers."""
    import torch

    return str(torch.device(device)) if isinstance(device, int) else str(device)


def _device_bytes(model: Any) -> dict[str, int]:
    """Return the bytes of parameters, buffers and quantisation scales by device, each storage counted once."""
    sizes: dict[str, int] = {}
    counted: set[int] = set()
    for tensor in chain(model.parameters(), model.buffers()):
        for part in registry.tensors_of(tensor):
            if part.is_meta or part.data_ptr() in counted:
                continue
            counted.add(part.data_ptr())
            device = str(part.device)
            sizes[device] = sizes.get(device, 0) + part.numel() * part.element_size()
    return sizes
