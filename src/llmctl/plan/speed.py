"""The expected speed of a plan, estimated as a range.

Decoding reads every active weight and the KV cache once per token: the speed is the bandwidth divided by these bytes,
times the share of the bandwidth that is reached. Prefill takes two operations per active weight and token: the speed is
the device's rate divided by these operations, times the share of the rate that is reached. The shares are ranges from
measurements of transformers 5 (2 Zen 3 and Zen 4 cores) and, for GPUs, which were not measured, from published figures
of eager decoding.
"""

from dataclasses import dataclass

from llmctl.machine.detection import Machine
from llmctl.machine.presets import MACS, card_of
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Plan

# Share of the memory bandwidth while decoding in 16 bits, by device; each quantisation backend has its own.
_DECODE_SHARES = {"cuda": (0.45, 0.85), "mps": (0.4, 0.8), "cpu": (0.3, 0.85)}
_DECODE_SHARE_OF_KERNELS = (0.5, 1.0)
# Billions of operations per second and core on a CPU during prefill.
_CPU_GIGAFLOPS = {"bf16 instructions": (80.0, 240.0), "bfloat16": (12.0, 30.0), "float32": (25.0, 70.0)}
_GPU_PREFILL_SHARE = (0.2, 0.6)
# Seconds to launch the kernels of one block from Python on a GPU.
_BLOCK_LAUNCH = (0.0002, 0.0006)
_SPILL_BANDWIDTH = 12e9  # bytes per second of the bus: weights in RAM cross it for every token


@dataclass(frozen=True)
class Speed:
    """The lowest and highest expected tokens per second.

    Attributes:
        decode: Range for decoding one sequence.
        prefill: Range for reading the prompt.
    """

    decode: tuple[float, float]
    prefill: tuple[float, float]


def estimate_speed(
    plan: Plan, machine: Machine, info: ModelInfo, *, ram_bandwidth: float | None = None
) -> Speed | None:
    """Estimate the speed of `plan`; None if the device's bandwidth is not known.

    Args:
        ram_bandwidth: Measured bytes per second of the RAM, for models on the CPU.
    """
    gpus = [device for device in plan.devices if device != "cpu"]
    rates = _rates(machine, gpus, ram_bandwidth)
    if rates is None or _is_unmeasured(plan, machine, gpus):
        return None
    device_kind = gpus[0].partition(":")[0] if gpus else "cpu"
    bandwidth, flops = rates
    active = active_share(info)
    low, high = _decode_share(plan, machine, device_kind)
    resident = sum(size for device, size in plan.memory.weights.items() if device != "cpu" or not gpus)
    spilled = sum(plan.memory.weights.values()) - resident
    bytes_per_token = resident * active + plan.memory.kv_cache_bytes / max(plan.memory.batch, 1)
    bus = spilled * active / _SPILL_BANDWIDTH
    launch = _BLOCK_LAUNCH if gpus else (0.0, 0.0)
    slowest = bytes_per_token / bandwidth / low + bus + info.layer_count * launch[1]
    fastest = bytes_per_token / bandwidth / high + bus + info.layer_count * launch[0]
    work = 2 * info.parameters * active
    if gpus:
        prefill = (_GPU_PREFILL_SHARE[0] * flops / work, _GPU_PREFILL_SHARE[1] * flops / work)
    else:
        prefill = _cpu_prefill(plan, machine, work)
    return Speed((1 / slowest, 1 / fastest), prefill)


def _is_unmeasured(plan: Plan, machine: Machine, gpus: list[str]) -> bool:
    """Return True for packed weights that are multiplied by the layers of other packages."""
    stored = plan.stored_quantization
    if stored is None or stored.backend.is_unpacked(stored):
        return False
    return stored.backend.decode_share(stored, gpus[0].partition(":")[0] if gpus else "cpu", machine) is None


def _decode_share(plan: Plan, machine: Machine, device_kind: str) -> tuple[float, float]:
    if plan.quantization is not None:
        share = plan.quantization.backend.decode_share(plan.quantization, device_kind, machine)
        if share is not None:
            return share
    return _DECODE_SHARE_OF_KERNELS if plan.kernels == "llmctl" else _DECODE_SHARES[device_kind]


def active_share(info: ModelInfo) -> float:
    """Return the share of the weights that one token uses: in a mixture of experts only some of the experts."""
    text = info.text_config
    count = text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts")
    active = text.get("num_experts_per_tok")
    if not isinstance(count, int) or not isinstance(active, int) or not count or not info.parameters:
        return 1.0
    experts = sum(tensor.numel for tensor in info.tensors if tensor.is_expert)
    return 1 - experts / info.parameters * (1 - min(active / count, 1))


def _rates(machine: Machine, gpus: list[str], ram_bandwidth: float | None) -> tuple[float, float] | None:
    """Return the bytes and operations per second of the slowest device in use."""
    if not gpus:
        return (ram_bandwidth, 0.0) if ram_bandwidth else None
    rates = []
    for gpu in machine.gpus:
        if gpu.kind == "mps":
            mac = MACS.get(gpu.name.removeprefix("Apple "))
            if mac:
                rates.append((mac[1] * 1e9, mac[2] * 1e12))
        elif gpu.device in gpus and (card := card_of(gpu)) is not None:
            rates.append((card.bandwidth_gb * 1e9, card.half_tflops * 1e12))
    return min(rates) if rates else None


def _cpu_prefill(plan: Plan, machine: Machine, work: float) -> tuple[float, float]:
    dtype = plan.model_kwargs["dtype"]
    key = "bf16 instructions" if dtype == "bfloat16" and machine.cpu_multiplies_bf16 else str(dtype)
    low, high = _CPU_GIGAFLOPS.get(key, _CPU_GIGAFLOPS["bfloat16"])
    if plan.quantization is not None and plan.quantization.backend.slows_prompts:
        low, high = low / 10, high / 1.5
    return (low * 1e9 * machine.physical_cores / work, high * 1e9 * machine.physical_cores / work)
