"""The decision on how weights are quantised: as the checkpoint stores them, while they are loaded, or not at all."""

from llmctl.config import Config
from llmctl.errors import UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision
from llmctl.plan.dtype import product_dtype
from llmctl.plan.kernels import kernels_obstacle
from llmctl.quant import registry
from llmctl.quant.backend import Choice, Quantization
from llmctl.quant.precision import Kind, kind_of

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
    products = product_dtype(machine, info, devices=devices, dtype=dtype)
    quantization, choices = backend.plan(config, machine, devices=devices, product_dtype=products)
    quantization = backend.keep(
        quantization, heads=_heads(info), read_directly=_never_quantised(info), kept=_kept(info)
    )
    first, *rest = choices
    reason = ("asked for: " if is_asked else "") + first.reason + _unquantised_share(quantization, info)
    return quantization, as_decisions((first._replace(reason=reason), *rest))


def _stored(
    config: Config, machine: Machine, info: ModelInfo, stored: Quantization, *, dtype: str, devices: tuple[str, ...]
) -> Chosen:
    refusal = stored.backend.refusal(config, machine, devices=devices)
    if refusal is not None:
        raise refusal
    obstacle = kernels_obstacle(config, machine, devices=devices)
    stored = stored.backend.loaded_as(stored, config, obstacle=obstacle)
    bits = config.quantization.bits
    if bits is not None and bits != stored.bits:
        more = "; more bits take more memory and are no more exact" if stored.bits and bits > stored.bits else ""
        raise UserError(
            f"{info.source} is already quantised ({stored.name}); it cannot be loaded in {bits}-bit{more}",
            hint="omit --quant, or use the unquantised original of the model",
            details={"quantization_method": stored.name},
        )
    first, *rest = stored.backend.explain_stored(stored, dtype=dtype, devices=devices)
    asked = "" if bits is None else f"asked for {bits}-bit: "
    return stored, as_decisions((first._replace(reason=asked + first.reason), *rest))


def as_decisions(choices: tuple[Choice, ...]) -> tuple[Decision, ...]:
    """Return a backend's choices as decisions of a plan."""
    return tuple(Decision(*choice) for choice in choices)


def _never_quantised(info: ModelInfo) -> tuple[str, ...]:
    """Return the ends of the names of modules that could be quantised by their shapes, but not by their code.

    These are the modules that the model's classes name, and those with more tensors than a weight and a bias: they
    compute something else than a linear layer.
    """
    tensors: dict[str, set[str]] = {}
    for tensor in info.loaded_tensors:
        if kind_of(tensor.name, tensor.shape) not in (Kind.OTHER, Kind.KEPT):
            tensors[tensor.name.rpartition(".")[0]] = set()
    for tensor in info.loaded_tensors:
        module, _, own = tensor.name.rpartition(".")
        if module in tensors:
            tensors[module].add(own)
    named = (end for end in info.modules_not_quantised if any(f".{module}".endswith(f".{end}") for module in tensors))
    special = (module for module, own in tensors.items() if own - {"weight", "bias"} and "experts" not in module)
    return tuple(dict.fromkeys((*named, *(".".join(module.split(".")[-2:]) for module in special))))


def _heads(info: ModelInfo) -> tuple[str, ...]:
    """Return the names of the output heads; one that shares the weights of the embedding is not in the checkpoint."""
    heads = [tensor for tensor in info.loaded_tensors if kind_of(tensor.name, tensor.shape) is Kind.HEAD]
    return tuple(dict.fromkeys(tensor.name.rpartition(".")[0] for tensor in heads)) or ("lm_head",)


def _kept(info: ModelInfo) -> tuple[str, ...]:
    """Return the ends of the names of modules whose matrices stay unquantised, two parts each."""
    kept = [tensor.name.split(".") for tensor in info.loaded_tensors if kind_of(tensor.name, tensor.shape) is Kind.KEPT]
    return tuple(dict.fromkeys(".".join(parts[-3:-1]) for parts in kept))


def _unquantised_share(quantization: Quantization, info: ModelInfo) -> str:
    """Return an addition to the reason if the backend leaves much of the model unquantised, embeddings aside."""
    backend, is_tied = quantization.backend, info.has_tied_head
    left = [
        tensor
        for tensor in info.loaded_tensors
        if kind_of(tensor.name, tensor.shape) in (Kind.LINEAR, Kind.KEPT, Kind.EXPERTS)
        and backend.weight_bytes(tensor, quantization, is_tied=is_tied) is None
    ]
    experts = sum(tensor.numel for tensor in left if kind_of(tensor.name, tensor.shape) is Kind.EXPERTS)
    if experts:
        share = f"{100 * experts / info.parameters:.0f} %"
        return (
            f"; the experts, {share} of the weights, stay unquantised: {backend.name} does not support them, "
            "and llmctl's own kernels for CPUs do (--device-map cpu)"
        )
    percent = 100 * sum(tensor.numel for tensor in left) / max(info.parameters, 1)
    return f"; {percent:.0f} % of the weights stay unquantised: {_WHY_KEPT}" if percent >= _SMALL_PERCENT else ""


_SMALL_PERCENT = 2
_WHY_KEPT = "narrow matrices, and those that other code reads"
