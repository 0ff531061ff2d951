"""The decision on how weights are quantised: as the checkpoint stores them, while they are loaded, or not at all."""

from llmctl.config import Config
from llmctl.errors import UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision
from llmctl.quant import registry
from llmctl.quant.backend import Choice, Quantization

Chosen = tuple[Quantization | None, tuple[Decision, ...]]


def decide_quantization(
    config: Config, machine: Machine, info: ModelInfo, *, dtype: str, devices: tuple[str, ...], is_asked: bool = True
) -> Chosen:
    """Return the quantisation, or None for none, and the reasons.

    Args:
        is_asked: False if a comparison set the quantisation, not the user.

    Raises:
        UserError: the checkpoint is quantised already, or the configuration contradicts itself.
        MachineError: the backend lacks a package or compiled kernels on this machine.
    """
    stored, section = info.stored_quantization, config.quantization
    if stored is not None:
        return _stored(config, machine, info, stored, dtype=dtype, devices=devices)
    if section.bits is None:
        return None, (Decision("quantization", "none", "not asked for"),)
    backend = registry.preferred(config, machine, devices=devices)
    refusal = backend.refusal(config, machine, devices=devices)
    if refusal is not None:
        raise refusal
    quantization, choices = backend.plan(config, machine, dtype=dtype)
    first, *rest = choices
    reason = ("asked for: " if is_asked else "") + first.reason + _unquantised_experts(quantization, info)
    return quantization, as_decisions((first._replace(reason=reason), *rest))


def _stored(
    config: Config, machine: Machine, info: ModelInfo, stored: Quantization, *, dtype: str, devices: tuple[str, ...]
) -> Chosen:
    refusal = stored.backend.refusal(config, machine, devices=devices)
    if refusal is not None:
        raise refusal
    bits = config.quantization.bits
    if bits is not None and bits != stored.bits:
        raise UserError(
            f"{info.source} is already quantised ({stored.name}); it cannot be loaded in {bits}-bit",
            hint="omit --quant, or use the unquantised original of the model",
            details={"quantization_method": stored.name},
        )
    return stored, as_decisions(stored.backend.explain_stored(stored, dtype=dtype, devices=devices))


def as_decisions(choices: tuple[Choice, ...]) -> tuple[Decision, ...]:
    """Return a backend's choices as decisions of a plan."""
    return tuple(Decision(*choice) for choice in choices)


def _unquantised_experts(quantization: Quantization, info: ModelInfo) -> str:
    """Return an addition to the reason if the backend leaves the experts of an MoE model unquantised."""
    weight_bytes = quantization.backend.weight_bytes
    experts = [tensor for tensor in info.tensors if tensor.is_expert]
    if not experts or any(weight_bytes(tensor, quantization, is_tied=False) is not None for tensor in experts):
        return ""
    share = f"{100 * sum(tensor.numel for tensor in experts) / info.parameters:.0f} %"
    return f"; the experts, {share} of the weights, stay unquantised: {quantization.backend.name} does not support them"
