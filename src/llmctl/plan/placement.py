"""The choice of devices, and of the device of every module.

The map is decided before loading, so that it can be shown and nothing spills to disk silently (accelerate's `auto` only
logs that).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Gpu, Machine, cuda_device
from llmctl.plan.decision import Decision
from llmctl.plan.memory import GPU_OVERHEAD_BYTES
from llmctl.units import format_bytes, parse_bytes

# Usable share of a GPU while quantising: bitsandbytes makes copies, and transformers uses the same share.
QUANTIZING_SHARE = 0.9
# Usable share of the free RAM; the rest is for the process itself.
RAM_SHARE = 0.95
SMALLER_MODEL = "choose a smaller model"


Filled = tuple[dict[str, int | str], dict[str, int]]  # device of each module, bytes on each device


@dataclass(frozen=True)
class Placement:
    """The devices of the modules.

    Attributes:
        device_map: `device_map` argument: {"": device}, or a device for every module.
        weights: Bytes of weights by device.
        spilled: Modules in RAM because the GPUs are full.
        decision: Decision with its reason.
    """

    device_map: Mapping[str, int | str]
    weights: Mapping[str, int]
    spilled: tuple[str, ...]
    decision: Decision


def candidate_devices(config: Config, machine: Machine) -> tuple[str, ...]:
    """Return the devices that may be used, before sizes are known.

    Raises:
        MachineError: the device map names a device that this machine lacks.
    """
    requested = config.load.device_map
    available = {gpu.device: gpu for gpu in machine.gpus}
    if isinstance(requested, dict):
        named = tuple(dict.fromkeys(device_name(target) for target in requested.values()))
    elif requested in ("auto", "balanced", "balanced_low_0", "sequential"):
        return tuple(available) or ("cpu",)
    else:
        named = (device_name(requested),)
    for device in named:
        if device != "cpu" and device not in available:
            raise MachineError(
                f"there is no {device} on this machine: {_describe_gpus(machine)}", hint="use --device-map auto or cpu"
            )
    return named


def device_name(target: int | str) -> str:
    """Return torch's name of a device: `0`, `"0"`, `cuda` and `cuda:0` are all `cuda:0`."""
    text = str(target)
    if text.isdigit():
        return cuda_device(text)
    return f"{text}:0" if text in ("cuda", "xpu") else text


def _describe_gpus(machine: Machine) -> str:
    if machine.gpus:
        return ", ".join(f"{gpu.kind}:{gpu.index} {gpu.name}" for gpu in machine.gpus)
    if machine.idle_gpus:
        return f"{machine.idle_gpus[0].name} is present, but this torch is built without CUDA"
    return "no GPU was found"


def place(
    config: Config,
    machine: Machine,
    sizes: Mapping[str, int],
    *,
    ram_sizes: Mapping[str, int] | None = None,
    reserved_bytes: int,
    quantized: bool,
) -> Placement:
    """Decide the device of every module.

    Args:
        sizes: Bytes by module, in forward order.
        ram_sizes: Bytes by module for modules in RAM beside a GPU, which bitsandbytes does not quantise.
        reserved_bytes: Bytes of cache and activations, kept free on the GPUs in equal parts.
        quantized: True if weights are quantised while loading.

    Raises:
        MachineError: it does not fit; the message has the figures.
        UserError: a device map leaves modules without a device.
    """
    devices, requested = candidate_devices(config, machine), config.load.device_map
    if isinstance(requested, dict):
        return _place_explicitly(requested, sizes)
    budgets = _budgets(config, machine, devices, reserved_bytes=reserved_bytes, quantized=quantized)
    ram = _Ram(budgets["cpu"], machine.ram_available_bytes, reserved_bytes, config.load.overcommit)
    total = sum(sizes.values())
    if devices in (("cpu",), ("mps",)):
        return _place_whole(devices[0], total, ram, _reason_for_one_device(devices[0], requested, machine))
    gpus = {device: budget for device, budget in budgets.items() if device != "cpu"}
    if not any(gpus.values()) and not requested.startswith("cuda"):
        return _place_whole(
            "cpu", total, ram, "the GPUs have no memory left for weights beside KV cache and activations"
        )
    whole = _place_on_one_gpu(requested, total, gpus, reserved_bytes=reserved_bytes)
    if whole is not None:
        return whole
    if requested != "sequential":
        budgets |= _even_budgets(sizes, gpus)
    return _spread(sizes, ram_sizes or sizes, budgets)


def _place_on_one_gpu(requested: str, total: int, gpus: Mapping[str, int], *, reserved_bytes: int) -> Placement | None:
    """Place everything on one GPU, or return None if the model has to be spread over several devices."""
    best = max(gpus, key=lambda device: gpus[device])
    if requested.startswith("cuda") and gpus[best] < total:
        raise _too_large(total, gpus, where=best, missing_bytes=total - gpus[best])
    first = next(iter(gpus))
    candidate = first if requested == "sequential" else best
    if gpus[candidate] >= total and (requested not in ("balanced", "balanced_low_0") or len(gpus) == 1):
        reserved = format_bytes(reserved_bytes)
        reason = f"all {format_bytes(total)} of weights fit on it, and {reserved} for KV cache and activations"
        return Placement({"": candidate}, {candidate: total}, (), Decision("device_map", candidate, reason))
    return None


def _place_explicitly(requested: Mapping[str, int | str], sizes: Mapping[str, int]) -> Placement:
    device_map = {module: device_name(target) for module, target in requested.items()}
    weights: dict[str, int] = {}
    unplaced = []
    for module, size in sizes.items():
        owner = max((name for name in device_map if _inside(module, name)), key=len, default=None)
        if owner is None:
            if not any(_inside(name, module) for name in device_map):
                unplaced.append(module)
            continue
        weights[device_map[owner]] = weights.get(device_map[owner], 0) + size
    if unplaced:
        raise UserError(
            f"the device map leaves {len(unplaced)} modules without a device: {', '.join(unplaced[:3])}",
            hint='add them, or "" for all other modules',
        )
    return Placement(device_map, weights, (), Decision("device_map", dict(device_map), "asked for"))


def _inside(module: str, parent: str) -> bool:
    return parent == "" or module == parent or module.startswith(f"{parent}.")


def _budgets(
    config: Config, machine: Machine, devices: tuple[str, ...], *, reserved_bytes: int, quantized: bool
) -> dict[str, int]:
    """Return the bytes of weights that each device can hold, RAM last."""
    limits = {device_name(k): parse_bytes(v) for k, v in (config.load.max_memory or {}).items()}
    gpus = [gpu for gpu in machine.gpus if gpu.device in devices and gpu.kind != "mps"]
    budgets: dict[str, int] = {}
    for gpu in gpus:
        budgets[gpu.device] = _gpu_budget(gpu, limits, share=reserved_bytes // len(gpus), quantized=quantized)
    budgets["cpu"] = min(limits.get("cpu", limits.get("mps", 2**62)), int(machine.ram_available_bytes * RAM_SHARE))
    return budgets


def _gpu_budget(gpu: Gpu, limits: Mapping[str, int], *, share: int, quantized: bool) -> int:
    limit = limits.get(gpu.device)
    usable = limit if limit is not None else gpu.free_bytes - GPU_OVERHEAD_BYTES - share
    return max(int(usable * (QUANTIZING_SHARE if quantized else 1)), 0)


@dataclass(frozen=True)
class _Ram:
    """The RAM: usable and free bytes, bytes of cache and activations, and the setting `load.overcommit`."""

    usable_bytes: int
    free_bytes: int
    working_bytes: int
    overcommit: bool


def _place_whole(device: str, total: int, ram: _Ram, reason: str) -> Placement:
    """Place everything on one device that uses the RAM."""
    if total + ram.working_bytes > ram.usable_bytes and not ram.overcommit:
        limited = "allowed by max_memory" if ram.usable_bytes < int(ram.free_bytes * RAM_SHARE) else "free"
        raise MachineError(
            f"the weights take {format_bytes(total)}, cache and activations {format_bytes(ram.working_bytes)}; "
            f"{format_bytes(ram.usable_bytes)} of RAM are {limited}",
            hint=SMALLER_MODEL,
            details={
                "weights_bytes": total,
                "working_bytes": ram.working_bytes,
                "ram_bytes": ram.usable_bytes,
                "missing_bytes": total + ram.working_bytes - ram.usable_bytes,
            },
        )
    return Placement({"": device}, {device: total}, (), Decision("device_map", device, reason))


def _reason_for_one_device(device: str, requested: str, machine: Machine) -> str:
    if requested == device:
        return "asked for"
    if machine.idle_gpus:
        return f"this torch is built without CUDA, so the {machine.idle_gpus[0].name} cannot be used"
    return "no GPU was found" if device == "cpu" else "it is the Apple GPU"


def _even_budgets(sizes: Mapping[str, int], gpus: Mapping[str, int]) -> dict[str, int]:
    """Return the smallest equal limit for every GPU with which whole modules, in forward order, still fit."""
    low, high = sum(sizes.values()) // len(gpus), max(gpus.values())

    def limited(limit: int) -> dict[str, int]:
        return {gpu: min(budget, limit) for gpu, budget in gpus.items()}

    if _fill(sizes, limited(high)) is None:
        return dict(gpus)
    while high - low > 1_000_000:
        middle = (low + high) // 2
        low, high = (low, middle) if _fill(sizes, limited(middle)) is not None else (middle, high)
    return limited(high)


def _fill(sizes: Mapping[str, int], budgets: Mapping[str, int], last: Mapping[str, int] | None = None) -> Filled | None:
    """Fill one device after the other with modules in forward order; None if they do not fit.

    Args:
        budgets: Bytes that each device can hold.
        last: Bytes by module on the last device, if they differ there.
    """
    queue = list(budgets)
    device_map: dict[str, int | str] = {}
    weights = dict.fromkeys(budgets, 0)
    for module in sizes:
        while True:
            device = queue[0]
            size = (last or sizes)[module] if len(queue) == 1 else sizes[module]
            if weights[device] + size <= budgets[device]:
                break
            if len(queue) == 1:
                return None
            queue.pop(0)
        device_map[module] = device
        weights[device] += size
    return device_map, weights


def _spread(sizes: Mapping[str, int], ram_sizes: Mapping[str, int], budgets: Mapping[str, int]) -> Placement:
    """Fill the GPUs, then RAM; nothing goes to disk."""
    total = sum(sizes.values())
    filled = _fill(sizes, budgets, ram_sizes)
    if filled is None:
        *_, last = budgets
        _, unlimited = _fill(sizes, {**budgets, last: 2**62}, ram_sizes) or ({}, {last: total})
        missing = unlimited[last] - budgets[last]
        raise _too_large(total, budgets, where="the GPUs and RAM", missing_bytes=missing)
    device_map, weights = filled
    spilled = tuple(module for module, device in device_map.items() if device == "cpu")
    used = {device: size for device, size in weights.items() if size}
    split = ", ".join(f"{format_bytes(size)} on {device}" for device, size in used.items())
    reason = f"spilled: the GPUs have no room for all {format_bytes(total)}" if spilled else "spread over the GPUs"
    return Placement(device_map, used, spilled, Decision("device_map", split, reason))


def _too_large(total: int, budgets: Mapping[str, int], *, where: str, missing_bytes: int) -> MachineError:
    room = ", ".join(f"{device} has room for {format_bytes(size)}" for device, size in budgets.items())
    return MachineError(
        f"the weights take {format_bytes(total)}, too much for {where}: {room}",
        hint=SMALLER_MODEL,
        details={"weights_bytes": total, "room_bytes": dict(budgets), "missing_bytes": missing_bytes},
    )
