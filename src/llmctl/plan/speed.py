"""How fast to expect it: an estimate, given as a range.

Decoding reads every active weight and the KV cache once a token, so it is bandwidth divided by bytes, times the share
of the bandwidth that transformers reaches. Prefill is two operations for every active weight and token, over the
device's rate, times the share of it that is reached. The shares are ranges, taken from measurements of transformers 5
(CPU: 2 Zen 3 and Zen 4 cores) and, for GPUs, which were not measured, from what is published of eager decoding.
"""

from dataclasses import dataclass

from llmctl.machine.detection import Machine
from llmctl.machine.presets import MACS, card_of
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Plan

# share of the memory bandwidth while decoding in 16 bits, by device; a backend knows those of its quantised weights
_DECODE_SHARES = {"cuda": (0.45, 0.85), "mps": (0.4, 0.8), "cpu": (0.3, 0.85)}
_DECODE_SHARE_OF_KERNELS = (0.5, 1.0)
# billions of operations a second and core, on a CPU, while reading a prompt
_CPU_GIGAFLOPS = {"bf16 instructions": (80.0, 240.0), "bfloat16": (12.0, 30.0), "float32": (25.0, 70.0)}
_GPU_PREFILL_SHARE = (0.2, 0.6)
# Launching the kernels of one block from Python takes about this long on a GPU, seconds.
_BLOCK_LAUNCH = (0.0002, 0.0006)
_SPILL_BANDWIDTH = 12e9  # weights in RAM come over the bus for every token, bytes a second


@dataclass(frozen=True)
class Speed:
    """An estimate: lowest and highest expected tokens per second.

    Attributes:
        decode: While answering, one sequence.
        prefill: While reading the prompt.
    """

    decode: tuple[float, float]
    prefill: tuple[float, float]


def estimate_speed(
    plan: Plan, machine: Machine, info: ModelInfo, *, ram_bandwidth: float | None = None
) -> Speed | None:
    """What to expect of `plan`. None where the device's bandwidth is not known.

    Args:
        plan: What was decided.
        machine: Where it will run.
        info: The model.
        ram_bandwidth: Measured bytes per second of the RAM, for what runs on the CPU.
    """
    quantization = plan.quantization
    active = active_share(info)
    on_gpu = [device for device in plan.devices if device != "cpu"]
    rates = _rates(machine, on_gpu, ram_bandwidth)
    if rates is None:
        return None
    kind = "cpu" if not on_gpu else on_gpu[0].partition(":")[0]
    bandwidth, flops = rates
    resident = sum(size for device, size in plan.memory.weights.items() if device != "cpu" or not on_gpu)
    spilled = sum(plan.memory.weights.values()) - resident
    share = quantization.backend.decode_share(quantization, kind, machine) if quantization is not None else None
    low, high = share or (_DECODE_SHARE_OF_KERNELS if plan.kernels == "llmctl" else _DECODE_SHARES[kind])
    moved = resident * active + plan.memory.kv_cache_bytes / max(plan.memory.batch, 1)
    bus = spilled * active / _SPILL_BANDWIDTH
    launch = _BLOCK_LAUNCH if kind != "cpu" else (0.0, 0.0)
    slowest = moved / bandwidth / low + bus + info.layer_count * launch[1]
    fastest = moved / bandwidth / high + bus + info.layer_count * launch[0]
    work = 2 * info.parameters * active
    if kind == "cpu":
        prefill = _cpu_prefill(
            plan, machine, work, slow=quantization is not None and quantization.backend.slows_prompts
        )
    else:
        prefill = (_GPU_PREFILL_SHARE[0] * flops / work, _GPU_PREFILL_SHARE[1] * flops / work)
    return Speed((1 / slowest, 1 / fastest), prefill)


def active_share(info: ModelInfo) -> float:
    """The share of the weights that one token uses: in a mixture only the chosen experts."""
    text = info.text_config
    count = text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts")
    chosen = text.get("num_experts_per_tok")
    if not isinstance(count, int) or not isinstance(chosen, int) or not count or not info.parameters:
        return 1.0
    experts = sum(tensor.numel for tensor in info.tensors if tensor.is_expert)
    return 1 - experts / info.parameters * (1 - min(chosen / count, 1))


def _rates(machine: Machine, on_gpu: list[str], ram_bandwidth: float | None) -> tuple[float, float] | None:
    """Bytes and operations per second of the slowest device in use."""
    if not on_gpu:
        return (ram_bandwidth, 0.0) if ram_bandwidth else None
    found = []
    for gpu in machine.gpus:
        if gpu.kind == "mps":
            known = MACS.get(gpu.name.removeprefix("Apple "))
            if known:
                found.append((known[1] * 1e9, known[2] * 1e12))
        elif gpu.device in on_gpu and (card := card_of(gpu)) is not None:
            found.append((card.bandwidth_gb * 1e9, card.half_tflops * 1e12))
    return min(found) if found else None


def _cpu_prefill(plan: Plan, machine: Machine, work: float, *, slow: bool) -> tuple[float, float]:
    dtype = plan.model_kwargs["dtype"]
    key = "bf16 instructions" if dtype == "bfloat16" and machine.cpu_multiplies_bf16 else str(dtype)
    low, high = _CPU_GIGAFLOPS.get(key, _CPU_GIGAFLOPS["bfloat16"])
    if slow:
        low, high = low / 10, high / 1.5
    return (low * 1e9 * machine.physical_cores / work, high * 1e9 * machine.physical_cores / work)
