"""Putting adapters on a loaded model: peft does it, on settings and weights that were checked."""

import importlib
import re
from collections.abc import Sequence
from typing import Any

from llmctl.errors import ModelError, first_line
from llmctl.model.adapters import WEIGHTS_FILE, AdapterInfo
from llmctl.quant import registry


def apply_adapters(model: Any, adapters: Sequence[AdapterInfo], *, merge: bool) -> Any:
    """The model with the adapters in it, all of them active.

    Args:
        model: A transformers model in eval mode; it is changed.
        adapters: What `check_fit` let pass.
        merge: Add them to the model's own weights, so that nothing of peft is left in it.

    Returns:
        The same transformers model, its layers wrapped by peft's, or changed where they are merged.

    Raises:
        ModelError: their weights do not belong to the model, or are not finite.
    """
    registry.import_packages()  # peft imports them as well, and then without what llmctl keeps away from them
    importlib.import_module("torch.distributed.tensor")  # peft looks into it without importing it
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names = [f"adapter_{number}" for number in range(len(adapters))]
    wrapped: Any = None
    for name, adapter in zip(names, adapters, strict=True):
        config = _lora_config(adapter)
        try:
            if wrapped is None:
                wrapped = PeftModel(model, config, adapter_name=name)
            else:
                wrapped.add_adapter(name, config)
            _fill(wrapped, name, adapter)
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"the adapter {adapter.source} cannot be put on this model: {first_line(error)}",
                hint=f"it was made for {adapter.base_model}" if adapter.base_model else None,
            ) from error
    wrapped.base_model.set_adapter(names)
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            for name, adapter in zip(names, adapters, strict=True):
                module.set_scale(name, adapter.scale)
    plain = wrapped.merge_and_unload(safe_merge=True) if merge else wrapped.get_base_model()
    plain.requires_grad_(False)
    return plain.eval()


def lora_arguments(adapter: AdapterInfo) -> dict[str, Any]:
    """The arguments of peft's LoraConfig: modules by their full names, ranks as the weights have them."""
    arguments = dict(adapter.settings)
    common = max(set(adapter.ranks.values()), key=list(adapter.ranks.values()).count)
    arguments |= {"r": common, "target_modules": sorted(adapter.ranks), "task_type": "CAUSAL_LM"}
    others = {re.escape(name): rank for name, rank in adapter.ranks.items() if rank != common}
    return arguments | ({"rank_pattern": others} if others else {})


def _lora_config(adapter: AdapterInfo) -> Any:
    from peft import LoraConfig

    return LoraConfig(**lora_arguments(adapter), inference_mode=True)


def _fill(wrapped: Any, name: str, adapter: AdapterInfo) -> None:
    """Read the weights into the layers that peft made for them, and refuse what finds no place."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(str(adapter.folder / WEIGHTS_FILE))
    bad = next((key for key, value in weights.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise ModelError(f"{adapter.source}: the weight {bad} contains NaN or infinity", hint="download it again")
    result: Any = set_peft_model_state_dict(wrapped, weights, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
    for what, keys in (("unexpected", result.unexpected_keys), ("missing", missing)):
        if keys:
            raise ModelError(
                f"the adapter {adapter.source} has {len(keys)} {what} weights, for example {keys[0]}",
                hint="it was made for another model, or is incomplete",
                details={f"{what}_keys": list(keys)[:100]},
            )
