"""Checks before and after weights are read: the architecture, its attention, and the weights themselves."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from llmctl import transformers_compat as compat
from llmctl.errors import MachineError, ModelError, UserError
from llmctl.loading.prepare import Prepared
from llmctl.model.info import ModelInfo
from llmctl.model.towers import tower_of
from llmctl.plan import Decision, Plan
from llmctl.quant import registry


def check_architecture(prepared: Prepared) -> Prepared:
    """Check that transformers knows the architecture, and return the plan with an attention that it supports.

    Raises:
        UserError: the architecture needs code of its own that is not trusted, does not generate text, or does not
            support the attention that the user asked for.
        MachineError: FlashAttention-2 was asked for, and its package cannot be imported.
    """
    info = prepared.info
    trusted = bool(prepared.plan.model_kwargs["trust_remote_code"])
    if not compat.knows_architecture(info.model_type):
        if not trusted:
            raise _unknown_architecture(info)
        return prepared
    if trusted:
        return prepared
    chosen = compat.text_model_class(info.model_type)
    if chosen is None:
        raise UserError(
            f"{info.source}: {info.model_type} is not a model that generates text", hint="choose another model"
        )
    return replace(prepared, plan=_with_supported_attention(prepared, chosen.model_class))


def _unknown_architecture(info: ModelInfo) -> UserError:
    if info.has_remote_code:
        return UserError(
            f"{info.source}: the architecture {info.model_type} needs Python code from its repository",
            hint="read that code, then set model.trust_remote_code: true",
        )
    return UserError(
        f"{info.source}: the architecture {info.model_type} is not known to this transformers",
        hint="a newer transformers may know it: pip install --upgrade transformers",
    )


def _with_supported_attention(prepared: Prepared, model_class: Any) -> Plan:
    plan, requested = prepared.plan, prepared.config.load.attn_implementation
    planned = plan.model_kwargs["attn_implementation"]
    failure = compat.flash_attention_failure() if planned == "flash_attention_2" else None
    if failure is None and compat.supports_attention(model_class, planned):
        return plan
    reason = f"{model_class.__name__} does not support {planned} here"
    if failure is not None:
        reason = f"flash_attn is installed and cannot be imported: {failure}"
    if requested != "auto" and failure is not None:
        raise MachineError(reason, hint="pip install --force-reinstall --no-build-isolation flash-attn, or --attn sdpa")
    if requested != "auto":
        raise UserError(f"{plan.source}: {reason}", hint="omit --attn")
    fallback = "sdpa" if compat.supports_attention(model_class, "sdpa") else "eager"
    decision = Decision("attn_implementation", fallback, reason, is_note=failure is not None)
    return replace(plan.with_decision(decision), model_kwargs={**plan.model_kwargs, "attn_implementation": fallback})


def check_keys(info: ModelInfo, report: Mapping[str, Any]) -> None:
    """Refuse missing and unexpected weights, which transformers only warns about: the missing ones are random numbers.

    The weights of towers that are left out are not unexpected.

    Raises:
        ModelError: the weights do not belong to the configuration.
    """
    for problem in ("missing", "mismatched", "unexpected"):
        names = (str(key[0] if isinstance(key, tuple) else key) for key in report.get(f"{problem}_keys") or ())
        keys = sorted(
            names if problem != "unexpected" or not info.left_out else _outside_towers(names, info.model_type)
        )
        if keys:
            raise ModelError(
                f"{info.source} has {len(keys)} {problem} weights, for example {', '.join(keys[:3])}",
                hint="the weights do not belong to this config.json, or are incomplete: download them again",
                details={f"{problem}_keys": keys[:100]},
            )


def _outside_towers(names: Iterable[str], model_type: str) -> Iterator[str]:
    return (name for name in names if tower_of(name, model_type) is None)


def check_finite(source: str, model: Any) -> None:
    """Refuse weights that contain NaN or infinity: all text generated from them would be noise.

    Raises:
        ModelError: naming the first such weight.
    """
    for name, parameter in chain(model.named_parameters(), registry.scales(model)):
        if not all(map(_is_finite, registry.tensors_of(parameter))):
            raise ModelError(
                f"{source}: the weight {name} contains NaN or infinity",
                hint="the checkpoint is damaged: download it again",
            )


def _is_finite(tensor: Any) -> bool:
    """Return False if a tensor in 16 or more bits contains NaN or infinity."""
    import torch

    if not tensor.is_floating_point() or tensor.is_meta or tensor.element_size() < 2 or not tensor.numel():
        return True
    smallest, largest = torch.aminmax(tensor.detach())  # NaN wins in both; ten times faster than isfinite
    return bool(torch.isfinite(smallest) and torch.isfinite(largest))
