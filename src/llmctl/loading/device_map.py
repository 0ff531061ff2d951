"""The devices of a model that several devices share.

The plan places the modules that hold weights. transformers puts all other tensors on the CPU, such as the frequencies
of the RoPE, which would then be copied to a GPU in every pass (integrations/accelerate.py: expand_device_map).
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from llmctl import transformers_compat as compat
from llmctl.errors import UserError
from llmctl.loading.prepare import Prepared

DeviceMap = Mapping[str, int | str]


def with_complete_device_map(prepared: Prepared, empty_model: Any) -> Prepared:
    """Return the inputs with a device for every tensor in the plan's device map.

    Args:
        empty_model: The model on the meta device.

    Raises:
        UserError: the user's device map names modules that the model lacks.
    """
    plan = prepared.plan
    device_map = plan.model_kwargs["device_map"]
    known = {name for name, _ in empty_model.named_modules()} | set(_tensor_names(empty_model))
    unknown = [name for name in device_map if name and name not in known]
    if unknown and isinstance(prepared.config.load.device_map, dict):
        raise UserError(
            f"the device map names {unknown[0]}, which {type(empty_model).__name__} does not have",
            hint=f"its modules begin with: {', '.join(name for name, _ in empty_model.named_children())}",
        )
    planned = {name: device for name, device in device_map.items() if name not in unknown}
    complete = complete_device_map(planned, empty_model)
    return replace(prepared, plan=replace(plan, model_kwargs={**plan.model_kwargs, "device_map": complete}))


def complete_device_map(device_map: DeviceMap, empty_model: Any) -> dict[str, int | str]:
    """Return a device map with the modules and tensors that it lacks.

    A tied weight gets the device of the one it shares, everything else the first device, where the inputs are.
    """
    complete = dict(device_map)
    first = next((device for device in device_map.values() if device != "cpu"), "cpu")
    tied = compat.tied_weights(empty_model)
    for name in _tensor_names(empty_model):
        if _device_of(name, complete) is None:
            module = name.rpartition(".")[0]
            has_placed_parts = not module or any(_is_inside(placed, module) for placed in complete)
            device = _device_of(tied[name], complete) if name in tied else None
            complete[name if has_placed_parts else module] = first if device is None else device
    return complete


def layer_shares(model: Any) -> dict[Any, float]:
    """Return the share of the decoder layers on each device that computes some, by torch's device."""
    layers = list(getattr(model.get_decoder(), "layers", ()))
    counts: dict[Any, float] = {}
    for layer in layers:
        device = _computing_device(layer)
        counts[device] = counts.get(device, 0) + 1 / len(layers)
    return counts or {model.device: 1.0}


def _computing_device(layer: Any) -> Any:
    """Return the device on which a layer computes; the weights of one in RAM are copied to its GPU for each pass."""
    import torch

    hook = getattr(layer, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(layer.parameters()).device


def _tensor_names(model: Any) -> list[str]:
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return [name for name, _ in tensors]


def _device_of(name: str, device_map: DeviceMap) -> int | str | None:
    owner = max((module for module in device_map if _is_inside(name, module)), key=len, default=None)
    return None if owner is None else device_map[owner]


def _is_inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")
