"""Which devices are used, and where every module goes.

The map is decided here, before anything is loaded, so that it can be shown and so that nothing spills to disk silently
(accelerate's own `auto` does that with a log line).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Gpu, Machine, cuda_device
from llmctl.plan.decision import Decision
from llmctl.plan.memory import GPU_OVERHEAD_BYTES
from llmctl.units import format_bytes, parse_bytes

# bitsandbytes makes copies while it quantises: transformers keeps this share of the memory back as well.
QUANTIZING_SHARE = 0.9
# Of the free RAM: the rest is for the process itself.
RAM_SHARE = 0.95


Filled = tuple[dict[str, int | str], dict[str, int]]  # the device of each module, and the bytes on each device


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
    here = {gpu.device: gpu for gpu in machine.gpus}
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
        return cuda_device(text)
    return cuda_device(0) if text == "cuda" else text


def _devices_here(machine: Machine) -> str:
    if machine.gpus:
        return ", ".join(f"{gpu.kind}:{gpu.index} {gpu.name}" for gpu in machine.gpus)
    if machine.idle_gpus:
        return f"{machine.idle_gpus[0].name} is here, but this torch is built without CUDA"
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
    """Decide where every module goes.

    Args:
        config: What was asked.
        machine: What is here.
        sizes: Bytes by module, in forward order.
        ram_sizes: Bytes by module where it lies in RAM beside a GPU; bitsandbytes does not quantise what lies there.
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
    ram = _Ram(budgets["cpu"], machine.ram_available_bytes, reserved_bytes, config.load.overcommit)
    if devices in (("cpu",), ("mps",)):
        return _whole(devices[0], total, ram, _why_whole(devices[0], wanted, machine))
    gpus = {device: budget for device, budget in budgets.items() if device != "cpu"}
    best = max(gpus, key=lambda device: gpus[device])
    if not gpus[best] and not wanted.startswith("cuda"):
        return _whole("cpu", total, ram, "the GPUs have no room beside KV cache and activations")
    if wanted.startswith("cuda") and gpus[best] < total:
        raise _too_large(total, gpus, where=best, asked=wanted)
    first = next(iter(gpus))
    alone = first if wanted == "sequential" else best
    if gpus[alone] >= total and (wanted not in ("balanced", "balanced_low_0") or len(gpus) == 1):
        reserved = format_bytes(reserved_bytes)
        reason = f"all {format_bytes(total)} of weights fit on it, and {reserved} for KV cache and activations"
        return Placement({"": alone}, {alone: total}, (), Decision("device_map", alone, reason))
    if wanted != "sequential":
        budgets |= _even_budgets(sizes, gpus)
    return _spread(sizes, ram_sizes or sizes, budgets, asked=wanted)


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
    limits = {device_name(k): parse_bytes(v) for k, v in (config.load.max_memory or {}).items()}
    gpus = [gpu for gpu in machine.gpus if gpu.device in devices and gpu.kind == "cuda"]
    budgets: dict[str, int] = {}
    for gpu in gpus:
        budgets[gpu.device] = _gpu_budget(gpu, limits, share=reserved_bytes // len(gpus), quantized=quantized)
    budgets["cpu"] = min(limits.get("cpu", limits.get("mps", 2**62)), int(machine.ram_available_bytes * RAM_SHARE))
    return budgets


def _gpu_budget(gpu: Gpu, limits: Mapping[str, int], *, share: int, quantized: bool) -> int:
    limit = limits.get(gpu.device)
    room = limit if limit is not None else gpu.free_bytes - GPU_OVERHEAD_BYTES - share
    return max(int(room * (QUANTIZING_SHARE if quantized else 1)), 0)


@dataclass(frozen=True)
class _Ram:
    """The RAM: what may be used of it, what is free, what cache and activations take, and whether to try regardless."""

    room_bytes: int
    free_bytes: int
    working_bytes: int
    overcommit: bool


def _whole(device: str, total: int, ram: _Ram, reason: str) -> Placement:
    """Everything on one device whose memory is the RAM."""
    if total + ram.working_bytes > ram.room_bytes and not ram.overcommit:
        limited = "allowed by max_memory" if ram.room_bytes < int(ram.free_bytes * RAM_SHARE) else "free"
        raise MachineError(
            f"the weights take {format_bytes(total)}, cache and activations {format_bytes(ram.working_bytes)}; "
            f"{format_bytes(ram.room_bytes)} of RAM are {limited}",
            hint="try --quant 4bit, --dtype bf16 or a smaller model; --overcommit tries it all the same",
            details={"weights_bytes": total, "working_bytes": ram.working_bytes, "ram_bytes": ram.room_bytes},
        )
    return Placement({"": device}, {device: total}, (), Decision("device_map", device, reason))


def _why_whole(device: str, wanted: str, machine: Machine) -> str:
    if wanted == device:
        return "asked for"
    if machine.idle_gpus:
        return f"this torch is built without CUDA, so the {machine.idle_gpus[0].name} cannot be used"
    return "no GPU was found" if device == "cpu" else "the Apple GPU is here"


def _even_budgets(sizes: Mapping[str, int], gpus: Mapping[str, int]) -> dict[str, int]:
    """The smallest equal limit for every GPU under which whole modules, in forward order, still fit on them all."""
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
    """Modules in forward order onto the devices in turn, each device filled before the next; None if they do not fit.

    Args:
        sizes: Bytes by module.
        budgets: Bytes that each device takes.
        last: Bytes by module on the last device, where they differ there.
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


def _spread(
    sizes: Mapping[str, int], ram_sizes: Mapping[str, int], budgets: Mapping[str, int], *, asked: str
) -> Placement:
    """Fill the GPUs, then RAM; nothing goes to disk."""
    total = sum(sizes.values())
    filled = _fill(sizes, budgets, ram_sizes)
    if filled is None:
        raise _too_large(total, budgets, where="the GPUs and RAM", asked=asked)
    device_map, weights = filled
    spilled = tuple(module for module, device in device_map.items() if device == "cpu")
    used = {device: size for device, size in weights.items() if size}
    split = ", ".join(f"{format_bytes(size)} on {device}" for device, size in used.items())
    reason = f"spilled: the GPUs have no room for all {format_bytes(total)}" if spilled else "spread over the GPUs"
    return Placement(device_map, used, spilled, Decision("device_map", split, reason))


def _too_large(total: int, budgets: Mapping[str, int], *, where: str, asked: str) -> MachineError:
    room = ", ".join(f"{device} has room for {format_bytes(size)}" for device, size in budgets.items())
    other = "" if asked == "auto" else "--device-map auto, "
    return MachineError(
        f"the weights take {format_bytes(total)}, too much for {where}: {room}",
        hint=f"try --quant 4bit or 8bit, {other}or a smaller model",
        details={"weights_bytes": total, "room_bytes": dict(budgets)},
    )
