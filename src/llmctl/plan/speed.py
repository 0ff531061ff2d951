"""The expected speed of a plan, estimated as a range.

Decoding reads every active weight and the KV cache once per token; prefill takes two operations per active weight and
token. On a CPU, the rates of llmctl's own kernels are measured (machine/cpu_rates.py), and the time between the
products is added: with them, the estimate is within a factor of 1.5 of `llmctl bench` (SmolLM2 135M and a Llama of 1.24
billion parameters in 16, 8 and 4 bits on 2 Zen 5 cores). Otherwise the speed is the device's rate times the share of it
that is reached: ranges from measurements of transformers 5 (2 Zen 3 and Zen 4 cores) and, for GPUs, which were not
measured, from published figures of eager decoding.
"""

from dataclasses import dataclass

from llmctl.machine.cards import rates_of
from llmctl.machine.cpu_rates import CpuRates
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.cache_memory import kv_cache_bytes
from llmctl.plan.decision import Plan
from llmctl.plan.work import active_share, prefill_operations, weight_reads

Range = tuple[float, float]

# Tokens of a short conversation, for which speeds are given unless stated otherwise.
SHORT_CONTEXT = 256
# Share of the memory bandwidth while decoding in 16 bits, by device; each quantisation backend has its own. For Intel's
# GPUs no figure of eager decoding with torch was found: the range is wide.
_DECODE_SHARES = {"cuda": (0.45, 0.85), "xpu": (0.2, 0.8), "mps": (0.4, 0.8), "cpu": (0.35, 0.7)}
# Shares of the measured rates of llmctl's kernels, measured with the two models named above.
_KERNEL_DECODE_SHARE, _KERNEL_PREFILL_SHARE = (0.88, 1.05), (0.8, 1.1)
_CACHE_SHARE = (0.2, 0.4)  # of the rate for 16 bits, reading keys and values
_ATTENTION_SHARE = (0.1, 0.25)  # of the rate for 16 bits, in the attention of a prompt
# Seconds for a block beside its products while decoding, in a program of llmctl's kernels and in transformers' modules;
# for a block of a whole prompt; and for a token beside the blocks.
_BLOCK_SECONDS, _MODULE_SECONDS, _PROMPT_BLOCK_SECONDS = (50e-6, 30e-6), (0.7e-3, 0.3e-3), (0.4e-3, 0.2e-3)
_TOKEN_SECONDS = (0.5e-3, 0.2e-3)
# Billions of operations per second and core on a CPU during prefill by torch.
_CPU_GIGAFLOPS = {"bf16 instructions": (80.0, 240.0), "bfloat16": (12.0, 30.0), "float32": (25.0, 70.0)}
_GPU_PREFILL_SHARE = (0.2, 0.6)
# Seconds to launch the kernels of one block from Python on a GPU.
_BLOCK_LAUNCH = (0.0006, 0.0002)
_SPILL_BANDWIDTH = 12e9  # bytes per second of the bus: weights in RAM cross it for every token, all experts included


@dataclass(frozen=True)
class Speed:
    """The lowest and highest expected tokens per second.

    Attributes:
        decode: Range for decoding one sequence after a short prompt.
        prefill: Range for reading a short prompt.
        decode_at_end: Range for decoding when the context is full.
    """

    decode: Range
    prefill: Range
    decode_at_end: Range


def estimate_speed(
    plan: Plan,
    machine: Machine,
    info: ModelInfo,
    *,
    cpu_rates: CpuRates | None = None,
    prompt_tokens: int = SHORT_CONTEXT,
) -> Speed | None:
    """Estimate the speed of `plan`; None if the device's rates are not known.

    Args:
        cpu_rates: Measured rates of this computer, for models on the CPU.
        prompt_tokens: Length of the prompt.
    """
    if _is_unmeasured(plan, machine):
        return None
    context = plan.memory.context
    prompt = min(prompt_tokens, context)
    if any(device != "cpu" for device in plan.devices):
        return _gpu_speed(plan, machine, info, prompt=prompt)
    if cpu_rates is None:
        return None
    if not cpu_rates.decode or not _uses_own_kernels(plan):
        return _torch_speed(plan, machine, info, cpu_rates, prompt=prompt)
    decode, at_end = (_kernel_decode(plan, info, cpu_rates, tokens) for tokens in (prompt, context))
    return Speed(decode, _kernel_prefill(plan, info, cpu_rates, prompt), at_end)


def _uses_own_kernels(plan: Plan) -> bool:
    """Return True if llmctl's kernels multiply the weights."""
    quantization = plan.quantization
    if quantization is None or (quantization.is_stored and quantization.backend.is_unpacked(quantization)):
        return plan.kernels == "llmctl"
    return quantization.backend.uses_own_kernels


def _kernel_decode(plan: Plan, info: ModelInfo, rates: CpuRates, tokens: int) -> Range:
    """Return the range for decoding with llmctl's kernels, with `tokens` in the cache."""
    reads = weight_reads(info, dtype=_dtype(plan), quantization=plan.quantization)
    weights = sum(size / rates.decode.get(kind, rates.decode["bfloat16"]) for kind, size in reads.items())
    cache = kv_cache_bytes(info, context=tokens, dtype=_dtype(plan)) / rates.decode["bfloat16"]
    low, high = (
        weights / share + cache / cache_share + info.layer_count * block + token
        for share, cache_share, block, token in zip(
            _KERNEL_DECODE_SHARE, _CACHE_SHARE, _BLOCK_SECONDS, _TOKEN_SECONDS, strict=True
        )
    )
    return 1 / low, 1 / high


def _kernel_prefill(plan: Plan, info: ModelInfo, rates: CpuRates, prompt: int) -> Range:
    kind = f"{plan.quantization.bits or 4}-bit" if plan.quantization is not None else _dtype(plan)
    if kind == "float16":  # the kernels multiply it in float32
        kind = "float32"
    weights, attention = prefill_operations(info, parameters=info.parameters, prompt_tokens=prompt)
    low, high = (
        weights / rates.prefill.get(kind, rates.prefill["bfloat16"]) / share
        + attention / rates.prefill["bfloat16"] / attention_share
        + info.layer_count * block
        for share, attention_share, block in zip(
            _KERNEL_PREFILL_SHARE, _ATTENTION_SHARE, _PROMPT_BLOCK_SECONDS, strict=True
        )
    )
    return prompt / low, prompt / high


def _torch_speed(plan: Plan, machine: Machine, info: ModelInfo, rates: CpuRates, *, prompt: int) -> Speed:
    """Estimate a model on the CPU whose products other kernels compute."""
    shares = _decode_share(plan, machine, "cpu")
    size = sum(weight_reads(info, dtype=_dtype(plan), quantization=plan.quantization).values())

    def decode(tokens: int) -> Range:
        total = size + kv_cache_bytes(info, context=tokens, dtype=_dtype(plan))
        low, high = (
            total / rates.bandwidth / share + info.layer_count * block
            for share, block in zip(shares, _MODULE_SECONDS, strict=True)
        )
        return 1 / low, 1 / high

    key = "bf16 instructions" if _dtype(plan) == "bfloat16" and machine.cpu_multiplies_bf16 else _dtype(plan)
    low, high = _CPU_GIGAFLOPS.get(key, _CPU_GIGAFLOPS["bfloat16"])
    if plan.quantization is not None and plan.quantization.backend.slows_prompts:
        low, high = low / 10, high / 1.5
    per_second = 1e9 * machine.physical_cores / (2 * info.parameters * active_share(info))
    return Speed(decode(prompt), (low * per_second, high * per_second), decode(plan.memory.context))


def _gpu_speed(plan: Plan, machine: Machine, info: ModelInfo, *, prompt: int) -> Speed | None:
    gpus = [device for device in plan.devices if device != "cpu"]
    rates = _gpu_rates(machine, gpus)
    if rates is None:
        return None
    bandwidth, flops = rates
    active = active_share(info)
    resident = sum(size for device, size in plan.memory.weights.items() if device != "cpu")
    spilled = sum(plan.memory.weights.values()) - resident

    def decode(tokens: int) -> Range:
        total = resident * active + kv_cache_bytes(info, context=tokens, dtype=_dtype(plan))
        low, high = (
            total / bandwidth / share + spilled / _SPILL_BANDWIDTH + info.layer_count * launch
            for share, launch in zip(
                _decode_share(plan, machine, gpus[0].partition(":")[0]), _BLOCK_LAUNCH, strict=True
            )
        )
        return 1 / low, 1 / high

    per_second = flops / (2 * info.parameters * active)
    prefill = (_GPU_PREFILL_SHARE[0] * per_second, _GPU_PREFILL_SHARE[1] * per_second)
    return Speed(decode(prompt), prefill, decode(plan.memory.context))


def _is_unmeasured(plan: Plan, machine: Machine) -> bool:
    """Return True for packed weights that are multiplied by the layers of other packages."""
    stored = plan.stored_quantization
    if stored is None or stored.backend.uses_own_kernels or stored.backend.is_unpacked(stored):
        return False
    gpus = [device for device in plan.devices if device != "cpu"]
    return stored.backend.decode_share(stored, gpus[0].partition(":")[0] if gpus else "cpu", machine) is None


def _dtype(plan: Plan) -> str:
    return str(plan.model_kwargs["dtype"])


def _decode_share(plan: Plan, machine: Machine, device_kind: str) -> Range:
    if plan.quantization is not None:
        share = plan.quantization.backend.decode_share(plan.quantization, device_kind, machine)
        if share is not None:
            return share
    return _DECODE_SHARES[device_kind]


def _gpu_rates(machine: Machine, gpus: list[str]) -> tuple[float, float] | None:
    """Return the bytes and operations per second of the slowest GPU in use; None if one of them is not known."""
    rates = [rates_of(gpu) for gpu in machine.gpus if gpu.device in gpus]
    known = [(rate.bandwidth, rate.operations) for rate in rates if rate is not None]
    return min(known) if known and len(known) == len(rates) else None
