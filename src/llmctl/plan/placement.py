"""Which devices are used, and where every module goes.

The map is decided here, before anything is loaded, so that it can be shown and so that nothing spills to disk silently
(accelerate's own `auto` does that with a log line).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine import Gpu, Machine
from llmctl.memory import GPU_OVERHEAD_BYTES, parse_size
from llmctl.plan.decision import Decision

# bitsandbytes makes copies while it quantises: transformers keeps this share of the memory back as well.
QUANTIZING_SHARE = 0.9


@dataclass(frozen=True)
class Placement:
    """Where the modules go.

    Attributes:
        device_map: The `device_map` argument: {"": device}, or a device for every module.
        weights: Bytes of weights by device.
        spilled: Modules that went to RAM because the GPUs are full.
        decision: The decision and its reason.
    """

    device_map: Mapping[str, int | str]
    weights: Mapping[str, int]
    spilled: tuple[str, ...]
    decision: Decision


def candidate_devices(config: Config, machine: Machine) -> tuple[str, ...]:
    """The devices that may be used, before sizes are known.

    Raises:
        MachineError: the device map names a device that is not here.
    """
    wanted = config.load.device_map
    here = {f"cuda:{gpu.index}" if gpu.kind == "cuda" else "mps": gpu for gpu in machine.gpus}
    if isinstance(wanted, dict):
        named = tuple(dict.fromkeys(device_name(place) for place in wanted.values()))
    elif wanted in ("auto", "balanced", "balanced_low_0", "sequential"):
        return tuple(here) or ("cpu",)
    else:
        named = (device_name(wanted),)
    for device in named:
        if device != "cpu" and device not in here:
            raise MachineError(
                f"there is no {device} here: {_devices_here(machine)}", hint="use --device-map auto or cpu"
            )
    return named


def device_name(place: int | str) -> str:
    """`0`, `"0"`, `cuda` and `cuda:0` are all `cuda:0`."""
    text = str(place)
    if text.isdigit():
        return f"cuda:{text}"
    return "cuda:0" if text == "cuda" else text


def _devices_here(machine: Machine) -> str:
    if machine.gpus:
        return ", ".join(f"{gpu.kind}:{gpu.index} {gpu.name}" for gpu in machine.gpus)
    if machine.idle_gpus:
        return f"{machine.idle_gpus[0].name} is here, but this torch is built without CUDA"
    return "no GPU was found"


def place(
    config: Config, machine: Machine, sizes: Mapping[str, int], *, reserved_bytes: int, quantized: bool
) -> Placement:
    """Decide where every module goes.

    Args:
        config: What was asked.
        machine: What is here.
        sizes: Bytes by module, in forward order.
        reserved_bytes: What the KV cache will take, kept free on the GPUs in equal parts.
        quantized: Whether weights are quantised while loading.

    Raises:
        MachineError: it does not fit; the message has the figures.
        UserError: a map that leaves modules without a device.
    """
    devices, wanted = candidate_devices(config, machine), config.load.device_map
    if isinstance(wanted, dict):
        return _explicit(wanted, sizes)
    budgets = _budgets(config, machine, devices, reserved_bytes=reserved_bytes, quantized=quantized)
    total = sum(sizes.values())
    if devices in (("cpu",), ("mps",)):
        return _whole(devices[0], total, machine, reserved_bytes=reserved_bytes, asked=wanted == devices[0])
    gpus = {device: budget for device, budget in budgets.items() if device != "cpu"}
    pinned = wanted.startswith("cuda")
    if wanted not in ("balanced", "balanced_low_0") and (pinned or max(gpus.values()) >= total):
        best = next(iter(gpus)) if pinned or wanted == "sequential" else max(gpus, key=lambda d: gpus[d])
        best = best if gpus[best] >= total or pinned else max(gpus, key=lambda d: gpus[d])
        if gpus[best] < total:
            raise _too_large(total, gpus, machine, where=best)
        reason = f"all {_gb(total)} of weights fit on it, with {_gb(reserved_bytes)} for the KV cache"
        return Placement({"": best}, {best: total}, (), Decision("device_map", best, reason))
    return _spread(sizes, budgets, machine, balanced=wanted != "sequential")


def _explicit(wanted: Mapping[str, int | str], sizes: Mapping[str, int]) -> Placement:
    device_map = {module: device_name(target) for module, target in wanted.items()}
    weights: dict[str, int] = {}
    left = []
    for module, size in sizes.items():
        owner = max((name for name in device_map if _inside(module, name)), key=len, default=None)
        if owner is None:
            if not any(_inside(name, module) for name in device_map):
                left.append(module)
            continue
        weights[device_map[owner]] = weights.get(device_map[owner], 0) + size
    if left:
        raise UserError(
            f"the device map leaves {len(left)} modules without a device: {', '.join(left[:3])}",
            hint='add them, or "" for everything that is not named',
        )
    return Placement(device_map, weights, (), Decision("device_map", dict(device_map), "asked for"))


def _inside(module: str, parent: str) -> bool:
    return parent == "" or module == parent or module.startswith(f"{parent}.")


def _budgets(
    config: Config, machine: Machine, devices: tuple[str, ...], *, reserved_bytes: int, quantized: bool
) -> dict[str, int]:
    """Bytes of weights that each device can take, RAM last."""
    limits = {device_name(k): parse_size(v) for k, v in (config.load.max_memory or {}).items()}
    gpus = [gpu for gpu in machine.gpus if f"cuda:{gpu.index}" in devices and gpu.kind == "cuda"]
    budgets: dict[str, int] = {}
    for gpu in gpus:
        budgets[f"cuda:{gpu.index}"] = _gpu_budget(gpu, limits, share=reserved_bytes // len(gpus), quantized=quantized)
    budgets["cpu"] = limits.get("cpu", int(machine.ram_available_bytes * 0.95))
    return budgets


def _gpu_budget(gpu: Gpu, limits: Mapping[str, int], *, share: int, quantized: bool) -> int:
    limit = limits.get(f"cuda:{gpu.index}")
    room = limit if limit is not None else gpu.free_bytes - GPU_OVERHEAD_BYTES - share
    return max(int(room * (QUANTIZING_SHARE if quantized else 1)), 0)


def _whole(device: str, total: int, machine: Machine, *, reserved_bytes: int, asked: bool) -> Placement:
    if total + reserved_bytes > machine.ram_available_bytes:
        raise MachineError(
            f"the weights take {_gb(total)} and the KV cache {_gb(reserved_bytes)}; "
            f"{_gb(machine.ram_available_bytes)} of RAM are free",
            hint="try --quant 4bit, --dtype bf16, a smaller model, or close other programs",
            details={"weights_bytes": total, "ram_available_bytes": machine.ram_available_bytes},
        )
    if asked:
        reason = "asked for"
    elif machine.idle_gpus:
        reason = f"this torch is built without CUDA, so the {machine.idle_gpus[0].name} cannot be used"
    else:
        reason = "no GPU was found" if device == "cpu" else "the Apple GPU is here"
    return Placement({"": device}, {device: total}, (), Decision("device_map", device, reason))


def _spread(sizes: Mapping[str, int], budgets: Mapping[str, int], machine: Machine, *, balanced: bool) -> Placement:
    """Fill the devices in forward order, whole modules only; what the GPUs cannot take goes to RAM, or nowhere."""
    gpus = [device for device in budgets if device != "cpu"]
    total = sum(sizes.values())
    room = dict(budgets)
    largest = max(sizes.values(), default=0)
    if balanced and total < sum(budgets[gpu] for gpu in gpus):
        even = total // len(gpus) + largest
        room |= {gpu: min(budgets[gpu], even) for gpu in gpus[:-1]}
    device_map: dict[str, int | str] = {}
    weights = dict.fromkeys(budgets, 0)
    queue = [*gpus, "cpu"]
    for module, size in sizes.items():
        while weights[queue[0]] + size > room[queue[0]]:
            if len(queue) == 1:
                raise _too_large(total, budgets, machine, where="the GPUs and RAM")
            queue.pop(0)
        device_map[module] = queue[0]
        weights[queue[0]] += size
    spilled = tuple(module for module, device in device_map.items() if device == "cpu")
    used = {device: size for device, size in weights.items() if size}
    split = ", ".join(f"{_gb(size)} on {device}" for device, size in used.items())
    reason = f"spilled: the GPUs have no room for all {_gb(total)}" if spilled else "spread over the GPUs"
    return Placement(device_map, used, spilled, Decision("device_map", split, reason))


def _too_large(total: int, budgets: Mapping[str, int], machine: Machine, *, where: str) -> MachineError:
    room = ", ".join(f"{device} has room for {_gb(size)}" for device, size in budgets.items())
    return MachineError(
        f"the weights take {_gb(total)}, too much for {where}: {room}",
        hint="try --quant 4bit or 8bit, --device-map auto, or a smaller model",
        details={"weights_bytes": total, "room_bytes": dict(budgets)},
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
