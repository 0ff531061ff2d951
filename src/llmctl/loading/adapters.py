"""Adapters on a loaded model, applied by peft from settings and weights that were checked."""

import importlib
import re
from collections.abc import Sequence
from typing import Any

from llmctl.errors import ModelError, first_line
from llmctl.model.adapters import WEIGHTS_FILE, AdapterInfo
from llmctl.quant import registry


def apply_adapters(model: Any, adapters: Sequence[AdapterInfo], *, merge: bool) -> Any:
    """Put adapters on a model, all of them active, and return it.

    Args:
        model: A transformers model in eval mode; its layers are wrapped by peft's.
        adapters: Adapters that passed `check_fit`.
        merge: Add the adapters to the model's own weights instead, so that no layer of peft remains.

    Raises:
        ModelError: weights of an adapter do not belong to the model, or are not finite.
    """
    registry.import_packages()  # peft imports them too, but without llmctl's precautions
    importlib.import_module("torch.distributed.tensor")  # peft uses it without importing it
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
            _load_weights(wrapped, name, adapter)
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
    """Return the arguments of peft's LoraConfig: modules by their full names, ranks as in the weights."""
    arguments = dict(adapter.settings)
    common = max(set(adapter.ranks.values()), key=list(adapter.ranks.values()).count)
    arguments |= {"r": common, "target_modules": sorted(adapter.ranks), "task_type": "CAUSAL_LM"}
    other_ranks = {re.escape(name): rank for name, rank in adapter.ranks.items() if rank != common}
    return arguments | ({"rank_pattern": other_ranks} if other_ranks else {})


def _lora_config(adapter: AdapterInfo) -> Any:
    from peft import LoraConfig

    return LoraConfig(**lora_arguments(adapter), inference_mode=True)


def _load_weights(wrapped: Any, name: str, adapter: AdapterInfo) -> None:
    """Load the weights into the layers that peft made, and refuse missing and unexpected ones."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(str(adapter.folder / WEIGHTS_FILE))
    bad = next((key for key, value in weights.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise ModelError(f"{adapter.source}: the weight {bad} contains NaN or infinity", hint="download it again")
    result: Any = set_peft_model_state_dict(wrapped, weights, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
    for problem, keys in (("unexpected", result.unexpected_keys), ("missing", missing)):
        if keys:
            raise ModelError(
                f"the adapter {adapter.source} has {len(keys)} {problem} weights, for example {keys[0]}",
                hint="it is for another model, or incomplete",
                details={f"{problem}_keys": list(keys)[:100]},
            )
