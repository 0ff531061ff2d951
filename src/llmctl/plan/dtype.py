"""The choice of the dtype that the model computes in."""

from llmctl.config import Config
from llmctl.errors import UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision
from llmctl.plan.gpus import computes_bfloat16, gpus_on, why_no_bfloat16

# Families whose hidden states exceed the largest float16, 65,504, so that their answers are noise: transformers#36822
# for Gemma 3, vLLM's config/model.py (_FLOAT16_NOT_SUPPORTED_MODELS) for Gemma 2, Gemma 3 and GLM-4, Unsloth's
# FORCE_FLOAT32 for Gemma 3n and gpt-oss.
_OVERFLOWING = frozenset({"gemma2", "gemma3", "gemma3n", "glm4", "gpt_oss"})


def overflows_in_float16(info: ModelInfo) -> bool:
    """Return True for a family that computes noise in float16."""
    return any(kind.removesuffix("_text") in _OVERFLOWING for kind in info.model_types)


def decide_dtype(
    config: Config, machine: Machine, info: ModelInfo, *, devices: tuple[str, ...], instead_of_float16: str = "float32"
) -> Decision:
    """Choose the dtype. An explicit dtype is used as it is.

    Args:
        devices: The devices that hold layers, or may hold some.
        instead_of_float16: The dtype of a model that overflows in float16, on a GPU without bfloat16: `float32`, or
            `bfloat16`, which takes half the memory and is emulated.

    Raises:
        UserError: it was asked for, and transformers cannot compute this model in it.
    """
    requested = config.load.dtype
    if info.computes_only_in_float32:
        reason = f"this transformers computes {info.model_type} in float32 only"
        if requested in ("auto", "float32"):
            return Decision("dtype", "float32", reason)
        raise UserError(f"{info.source}: {reason}", hint="--dtype float32, or a newer transformers")
    if requested != "auto":
        return _with_warning(Decision("dtype", requested, "asked for"), info)
    decision = _best_dtype(config, machine, info, devices=devices, instead_of_float16=instead_of_float16)
    quantization = info.stored_quantization
    possible = quantization.backend.dtypes(devices) if quantization is not None else ()
    if quantization is None or not possible or decision.value in possible:
        return decision
    reason = f"weights in the format {quantization.backend.name} compute in it here"
    return _with_warning(Decision("dtype", possible[0], reason), info)


def product_dtype(machine: Machine, info: ModelInfo, *, devices: tuple[str, ...], dtype: str) -> str:
    """Return the dtype in which quantised weights are multiplied: half precision, unless it would overflow."""
    if dtype in ("float16", "bfloat16"):
        return dtype
    if all(computes_bfloat16(gpu, machine) for gpu in gpus_on(machine, devices)):
        return "bfloat16"
    return "float32" if overflows_in_float16(info) else "float16"


def _with_warning(decision: Decision, info: ModelInfo) -> Decision:
    """Return a choice of float16 with a warning if the model overflows in it."""
    if decision.value != "float16" or not overflows_in_float16(info):
        return decision
    warning = f"{info.model_type} overflows in float16, and its answers may be noise"
    return Decision("dtype", "float16", f"{decision.reason}; {warning}", is_note=True)


def _best_dtype(
    config: Config, machine: Machine, info: ModelInfo, *, devices: tuple[str, ...], instead_of_float16: str
) -> Decision:
    half_wanted = config.quantization.bits is not None or config.load.attn_implementation == "flash_attention_2"
    if gpus_on(machine, devices):
        return _on_gpus(machine, info, devices, half_wanted=half_wanted, instead_of_float16=instead_of_float16)
    return _on_cpu(machine, info, stored=info.stored_dtype, half_wanted=half_wanted)


def _on_gpus(
    machine: Machine, info: ModelInfo, devices: tuple[str, ...], *, half_wanted: bool, instead_of_float16: str
) -> Decision:
    stored, gpus = info.stored_dtype, gpus_on(machine, devices)
    overflows = overflows_in_float16(info)
    if stored == "float32" and not half_wanted:
        return Decision("dtype", "float32", "the weights are stored in it; --dtype bf16 halves the memory")
    lacking = next((gpu for gpu in gpus if not computes_bfloat16(gpu, machine)), None)
    if lacking is not None:
        why = why_no_bfloat16(lacking, machine)
        if not overflows:
            return Decision("dtype", "float16", why)
        if instead_of_float16 == "float32" or lacking.kind == "mps":
            return Decision("dtype", "float32", f"{info.model_type} overflows in float16, and {why}")
        reason = (
            f"{info.model_type} overflows in float16, and float32 takes too much memory; {why}, so torch emulates it"
        )
        return Decision("dtype", "bfloat16", f"{reason}, slowly")
    if stored == "float32":
        return Decision("dtype", "bfloat16", "half precision is needed here, and the GPU computes bfloat16")
    if stored == "float16" and overflows:
        return Decision("dtype", "bfloat16", f"{info.model_type} overflows in float16, in which its weights are stored")
    return Decision("dtype", stored, "the weights are stored in it and the GPU computes it")


def _on_cpu(machine: Machine, info: ModelInfo, *, stored: str, half_wanted: bool) -> Decision:
    """Choose bfloat16 on a CPU: it decodes about twice as fast as float32, since decoding reads every weight per token.

    Measured on 2 Zen 4 cores with a prompt of 128 tokens and a Llama of 0.5 billion parameters (results with SmolLM2
    are similar): with AVX512-BF16 it prefills 330 tokens/s against 100 in float32 and decodes 15 against 8; limited to
    AVX2 it prefills 42 against 109 and decodes 26 against 8. Most of the time of an answer is decoding, so bfloat16 is
    faster on both. float16 has no fast path on most CPUs.
    """
    if stored == "float32" and not half_wanted:
        if info.parameters * 4 <= machine.ram_available_bytes:
            return Decision("dtype", "float32", "the weights are stored in it and fit in RAM")
        return Decision("dtype", "bfloat16", "float32, as stored, does not fit in RAM")
    if machine.cpu_multiplies_bf16:
        return Decision(
            "dtype",
            "bfloat16",
            "fastest here: this CPU has bfloat16 instructions, and half the bytes to read",
        )
    return Decision(
        "dtype",
        "bfloat16",
        "half the bytes to read for each token; long prompts run faster in float32 on this CPU (--dtype fp32)",
    )
