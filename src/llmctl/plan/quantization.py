"""Whether and how weights are quantised while loading."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine import Machine
from llmctl.memory import Quantized, is_expert, is_linear_weight
from llmctl.modelinfo import ModelInfo
from llmctl.plan.decision import Decision


@dataclass(frozen=True)
class QuantizationChoice:
    """What was chosen.

    Attributes:
        stored: How weights are stored, for counting bytes; None when they are not quantised on loading.
        arguments: The arguments of transformers' `BitsAndBytesConfig`, dtypes by name; None likewise.
        decisions: What was decided and why.
    """

    stored: Quantized | None
    arguments: dict[str, Any] | None
    decisions: tuple[Decision, ...]


def decide_quantization(config: Config, machine: Machine, info: ModelInfo, *, dtype: str) -> QuantizationChoice:
    """Choose the quantisation.

    Raises:
        UserError: the checkpoint is quantised already, or a dtype was asked for that undoes the purpose.
        MachineError: bitsandbytes is not installed.
    """
    wanted = config.quantization
    if info.quantization_method is not None:
        return _keep(config, info)
    if wanted.bits is None:
        return QuantizationChoice(None, None, (Decision("quantization", "none", "not asked for"),))
    if "bitsandbytes" not in machine.packages:
        raise MachineError(
            f"{wanted.bits}-bit weights need the package bitsandbytes, which is not installed",
            hint="pip install bitsandbytes",
        )
    if wanted.bits == 8:
        return _eight_bits(config, machine)
    return _four_bits(config, machine, dtype=dtype)


def tell_unquantised(choice: QuantizationChoice, info: ModelInfo) -> QuantizationChoice:
    """Add to the reason that a mixture's experts, most of its weights, are passed over by bitsandbytes."""
    experts = sum(tensor.numel for tensor in info.tensors if is_expert(tensor))
    if choice.stored is None or not experts:
        return choice
    first, *rest = choice.decisions
    share = f"{100 * experts / info.parameters:.0f} %"
    reason = f"{first.reason}; the experts, {share} of the weights, stay as they are: bitsandbytes passes over them"
    return replace(choice, decisions=(replace(first, reason=reason), *rest))


def unquantised_bytes(arguments: Mapping[str, Any] | None, info: ModelInfo) -> int:
    """Bytes of the weights that stay in half precision although the rest is quantised; 0 where nothing is."""
    if not arguments:
        return 0
    skipped = tuple(arguments.get("llm_int8_skip_modules") or ())
    return sum(2 * tensor.numel for tensor in info.tensors if not is_linear_weight(tensor, skipped))


def _keep(config: Config, info: ModelInfo) -> QuantizationChoice:
    method = info.quantization_method
    if config.quantization.bits is not None and method != f"bitsandbytes {config.quantization.bits}-bit":
        raise UserError(
            f"{info.source} is already quantised ({method}); it cannot be loaded in {config.quantization.bits}-bit",
            hint="leave --quant away, or take the unquantised original of the model",
            details={"quantization_method": method},
        )
    return QuantizationChoice(None, None, _stored(method, info.quantization or {}))


def _stored(method: str | None, stored: Mapping[str, Any]) -> tuple[Decision, ...]:
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
    return "; on a CPU it saves memory and costs speed"
