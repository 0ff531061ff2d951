"""Whether and how weights are quantised while loading."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import PACKED, ModelInfo, is_packed, is_packed_by_torch
from llmctl.plan.decision import Decision
from llmctl.plan.memory import Quantized, is_expert, quantized_bits, tied


@dataclass(frozen=True)
class QuantizationChoice:
    """What was chosen.

    Attributes:
        stored: How weights are stored, for counting bytes; None when they are not quantised on loading.
        arguments: The arguments of transformers' `BitsAndBytesConfig`, dtypes by name, or of `LlmctlConfig` with
            `quant_method: llmctl`; None likewise.
        decisions: What was decided and why.
    """

    stored: Quantized | None
    arguments: dict[str, Any] | None
    decisions: tuple[Decision, ...]


def decide_quantization(
    config: Config, machine: Machine, info: ModelInfo, *, dtype: str, devices: tuple[str, ...]
) -> QuantizationChoice:
    """Choose the quantisation.

    Raises:
        UserError: the checkpoint is quantised already, or what was asked for contradicts itself.
        MachineError: bitsandbytes is not installed, or llmctl's kernels are needed and not there.
    """
    wanted = config.quantization
    if info.quantization_method is not None:
        return _keep(config, machine, info, devices=devices)
    if wanted.bits is None:
        return QuantizationChoice(None, None, (Decision("quantization", "none", "not asked for"),))
    backend = choose_backend(config, machine, devices=devices)
    if backend != "bitsandbytes":
        return _packed(config, by_torch=backend == "torch")
    if "bitsandbytes" not in machine.packages:
        raise MachineError(
            f"{wanted.bits}-bit weights need the package bitsandbytes, which is not installed",
            hint="pip install bitsandbytes",
        )
    if wanted.bits == 8:
        return _eight_bits(config, machine)
    return _four_bits(config, machine, dtype=dtype)


def choose_backend(config: Config, machine: Machine, *, devices: tuple[str, ...]) -> str:
    """`llmctl`, `torch` or `bitsandbytes`. The kernels of the first two are for CPUs, and have codes of their own.

    Raises:
        UserError: such kernels were asked for on a GPU.
        MachineError: llmctl's were asked for and are not there.
    """
    wanted = config.quantization
    if wanted.backend in ("llmctl", "torch"):
        _check_cpu(config, devices, wanted.backend)
    if wanted.backend == "llmctl":
        _check_kernels(machine)
    if wanted.backend != "auto":
        return wanted.backend
    if devices != ("cpu",) or config.model.adapters or _bitsandbytes_keys(config):
        return "bitsandbytes"
    return "torch" if machine.kernels is None else "llmctl"


def _check_cpu(config: Config, devices: tuple[str, ...], backend: str) -> None:
    kernels = "llmctl's own kernels" if backend == "llmctl" else "torch's packed kernels"
    if config.model.adapters:
        raise UserError(
            f"adapters do not go on weights for {kernels}",
            hint="quantization.backend: bitsandbytes, or no quantisation",
        )
    if devices != ("cpu",):
        raise UserError(
            f"{kernels} are for CPUs, and the model goes to {', '.join(devices)}",
            hint="--device-map cpu, or for weights that are not quantised yet quantization.backend: bitsandbytes",
        )


def _check_kernels(machine: Machine) -> None:
    if machine.kernels is None:
        raise MachineError(
            "llmctl's own kernels are not there: they are compiled when llmctl is installed",
            hint="install it again with a C++ compiler on the PATH, or take the unquantised original of the model",
        )


def _bitsandbytes_keys(config: Config) -> list[str]:
    """What was asked for that only bitsandbytes has."""
    wanted = config.quantization
    return sorted(wanted.model_fields_set & {"quant_type", "use_double_quant", "llm_int8_threshold", "compute_dtype"})


def _packed(config: Config, *, by_torch: bool) -> QuantizationChoice:
    """llmctl's own format, blocks of 32 weights with a scale each, or what torch's kernels multiply."""
    wanted = config.quantization
    assert wanted.bits is not None  # noqa: S101 (asked before)
    arguments: dict[str, Any] = {"quant_method": PACKED, "bits": wanted.bits, "head_bits": wanted.head_bits}
    if by_torch:
        arguments |= {"kernels": "torch", "head_bits": 8 if wanted.head_bits else None}
    if wanted.skip_modules is not None:
        arguments["skip_modules"] = list(wanted.skip_modules)
    why = "asked for"
    if wanted.backend == "auto" and by_torch:
        why += "; by torch's packed kernels: llmctl's own, which are faster, were not compiled"
    elif wanted.backend == "auto":
        why += "; on a CPU by llmctl's own kernels"
    width = {4: "5", 8: "8"}[wanted.bits] if by_torch else f"{wanted.bits}.5"
    head = f"the output head in {arguments['head_bits']}" if arguments["head_bits"] else "the output head as it is"
    name = "torch" if by_torch else "llmctl"
    decision = Decision(
        "quantization", f"{name} {wanted.bits}-bit", f"{why}: {width} bits a weight with the scales, {head}"
    )
    return QuantizationChoice(stored_as(arguments), arguments, (decision,))


def tell_unquantised(choice: QuantizationChoice, info: ModelInfo) -> QuantizationChoice:
    """Add to the reason that a mixture's experts, most of its weights, are passed over by bitsandbytes."""
    experts = sum(tensor.numel for tensor in info.tensors if is_expert(tensor))
    if choice.stored is None or choice.stored.packed or not experts:
        return choice
    first, *rest = choice.decisions
    share = f"{100 * experts / info.parameters:.0f} %"
    reason = f"{first.reason}; the experts, {share} of the weights, stay as they are: bitsandbytes passes over them"
    return replace(choice, decisions=(replace(first, reason=reason), *rest))


def unquantised_bytes(arguments: Mapping[str, Any] | None, info: ModelInfo) -> int:
    """Bytes of the weights that stay in half precision although the rest is quantised; 0 where nothing is."""
    if not arguments:
        return 0
    stored, is_tied = stored_as(arguments), tied(info)
    return sum(2 * t.numel for t in info.tensors if quantized_bits(t, stored, is_tied=is_tied) is None)


def stored_as(arguments: Mapping[str, Any]) -> Quantized:
    """How the arguments of a quantisation store weights, for counting bytes."""
    if is_packed(arguments):
        skipped = tuple(arguments.get("skip_modules") or ())
        return Quantized(
            arguments["bits"],
            skip_modules=skipped,
            packed=True,
            head_bits=arguments.get("head_bits"),
            by_torch=is_packed_by_torch(arguments),
        )
    skipped = tuple(arguments.get("llm_int8_skip_modules") or ())
    double = bool(arguments.get("bnb_4bit_use_double_quant"))
    return Quantized(4 if arguments.get("load_in_4bit") else 8, double=double, skip_modules=skipped)


def _keep(config: Config, machine: Machine, info: ModelInfo, *, devices: tuple[str, ...]) -> QuantizationChoice:
    method = info.quantization_method or ""
    if method.startswith("llmctl"):
        _check_cpu(config, devices, "llmctl")
        _check_kernels(machine)
    if config.quantization.bits is not None and not method.endswith(f" {config.quantization.bits}-bit"):
        raise UserError(
            f"{info.source} is already quantised ({method}); it cannot be loaded in {config.quantization.bits}-bit",
            hint="leave --quant away, or take the unquantised original of the model",
            details={"quantization_method": method},
        )
    return QuantizationChoice(None, None, _stored(method, info.quantization or {}))


def _stored(method: str, stored: Mapping[str, Any]) -> tuple[Decision, ...]:
    """What the checkpoint is, in the words that are used for what llmctl quantises itself."""
    why = "the checkpoint is stored this way"
    if method != "bitsandbytes 4-bit":
        return (Decision("quantization", method, why),)
    double = " double" if stored.get("bnb_4bit_use_double_quant") else ""
    compute = str(stored.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
    return (
        Decision("quantization", f"{method} {stored.get('bnb_4bit_quant_type', 'fp4')}{double}", why),
        Decision("bnb_4bit_compute_dtype", compute, "the checkpoint says so"),
    )


def _eight_bits(config: Config, machine: Machine) -> QuantizationChoice:
    wanted = config.quantization
    arguments: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": wanted.llm_int8_threshold}
    _common(config, arguments)
    reason = "asked for: LLM.int8 of bitsandbytes" + _cpu_warning(machine)
    stored = Quantized(8, skip_modules=tuple(wanted.skip_modules or ()))
    return QuantizationChoice(stored, arguments, (Decision("quantization", "bitsandbytes 8-bit", reason),))


def _four_bits(config: Config, machine: Machine, *, dtype: str) -> QuantizationChoice:
    wanted = config.quantization
    compute: str = wanted.compute_dtype
    reason = "asked for"
    if compute == "auto":
        # BitsAndBytesConfig's own default is float32, which makes every product of a half-precision model slow.
        compute = dtype if dtype in ("float16", "bfloat16") else "bfloat16"
        reason = "the model's half precision; the library's default, float32, is several times slower"
    arguments: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": wanted.quant_type,
        "bnb_4bit_use_double_quant": wanted.use_double_quant,
        "bnb_4bit_compute_dtype": compute,
    }
    _common(config, arguments)
    stored = Quantized(4, double=wanted.use_double_quant, skip_modules=tuple(wanted.skip_modules or ()))
    kind = f"bitsandbytes 4-bit {wanted.quant_type}" + (" double" if wanted.use_double_quant else "")
    decisions = (
        Decision("quantization", kind, "asked for" + _cpu_warning(machine)),
        Decision("bnb_4bit_compute_dtype", compute, reason),
    )
    return QuantizationChoice(stored, arguments, decisions)


def _common(config: Config, arguments: dict[str, Any]) -> None:
    if config.quantization.skip_modules is not None:
        arguments["llm_int8_skip_modules"] = list(config.quantization.skip_modules)
    if config.quantization.enable_fp32_cpu_offload:
        arguments["llm_int8_enable_fp32_cpu_offload"] = True


def _cpu_warning(machine: Machine) -> str:
    if machine.gpus:
        return ""
    better = "torch" if machine.kernels is None else "llmctl"
    return f"; on a CPU it saves memory and costs speed, unlike quantization.backend: {better}"
