"""The choice of the device of every module.

The map is decided before loading, so that it can be shown and nothing spills to disk silently (accelerate's `auto` only
logs that). Where several devices are in use, its GPUs are numbers, as in transformers' own maps: accelerate takes the
first of a *set* of devices as the main one, which is the same in every run for numbers, but not for strings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Gpu, Machine
from llmctl.plan.decision import Decision
from llmctl.plan.devices import DeviceChoice, device_name
from llmctl.plan.gpus import gpus_on, is_card
from llmctl.plan.memory import GPU_OVERHEAD_BYTES
from llmctl.units import format_bytes, parse_bytes

# Usable share of a GPU while quantising: bitsandbytes makes copies, and transformers uses the same share.
QUANTIZING_SHARE = 0.9
# Usable share of the free RAM; the rest is for the process itself.
RAM_SHARE = 0.95
SMALLER_MODEL = "choose a smaller model"
_NO_ROOM = "the GPUs have no memory left for weights beside KV cache and activations"


Filled = tuple[dict[str, str], dict[str, int]]  # device of each module, bytes on each device


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


@dataclass(frozen=True)
class ModuleSizes:
    """The bytes of a model's modules.

    Attributes:
        on_gpu: Bytes by module, in forward order.
        in_ram: Bytes by module in RAM beside a GPU, where bitsandbytes quantises nothing.
        tied: Names of the output head and of the embedding whose weights it shares, so that both need the same device.
    """

    on_gpu: Mapping[str, int]
    in_ram: Mapping[str, int]
    tied: tuple[str, str] | None = None

    @property
    def total(self) -> int:
        """Bytes of all modules."""
        return sum(self.on_gpu.values())


@dataclass(frozen=True)
class Reserved:
    """Bytes that are kept free on the GPUs.

    Attributes:
        divided_bytes: Bytes that the GPUs divide as they divide the layers: KV cache, states, adapters.
        whole_bytes: Bytes that each GPU needs in its turn: activations, images.
    """

    divided_bytes: int
    whole_bytes: int

    @property
    def total_bytes(self) -> int:
        """All bytes, for one device."""
        return self.divided_bytes + self.whole_bytes

    @property
    def alone(self) -> "Reserved":
        """The same for a GPU that holds all layers."""
        return Reserved(0, self.total_bytes)


def place(
    config: Config,
    machine: Machine,
    sizes: ModuleSizes,
    *,
    choice: DeviceChoice,
    reserved: Reserved,
    quantized: bool,
) -> Placement:
    """Decide the device of every module.

    Args:
        choice: The devices to use, and why.
        reserved: Bytes that are kept free.
        quantized: True if weights are quantised while loading.

    Raises:
        MachineError: it does not fit; the message has the figures.
        UserError: a device map leaves modules without a device.
    """
    devices, requested = choice.devices, config.load.device_map
    if isinstance(requested, dict):
        return _place_explicitly(requested, sizes)
    budgets = _budgets(config, machine, devices, reserved=reserved, quantized=quantized)
    ram = _Ram(budgets["cpu"], _ram_limit(config, machine, devices), reserved.total_bytes, config.load.overcommit)
    if devices in (("cpu",), ("mps",)):
        reason = "asked for" if requested == devices[0] else choice.reason or "it is the Apple GPU"
        return _place_whole(devices[0], sizes.total, ram, reason)
    gpus = {device: budget for device, budget in budgets.items() if device != "cpu"}
    if not any(gpus.values()) and not is_card(requested):
        return _place_whole("cpu", sizes.total, ram, _NO_ROOM)
    alone = _budgets(config, machine, devices, reserved=reserved.alone, quantized=quantized)
    alone.pop("cpu")
    placement = _place_on_one_gpu(requested, sizes.total, alone, reserved_bytes=reserved.total_bytes)
    if placement is None:
        if requested != "sequential":
            budgets |= _even_budgets(sizes.on_gpu, gpus)
        placement = _spread(sizes, budgets)
    return _with_reason(placement, choice.reason)


def _with_reason(placement: Placement, more: str) -> Placement:
    """Return a placement with an addition to its reason."""
    decision = placement.decision
    return replace(placement, decision=replace(decision, reason=f"{decision.reason}; {more}")) if more else placement


def _place_on_one_gpu(requested: str, total: int, gpus: Mapping[str, int], *, reserved_bytes: int) -> Placement | None:
    """Place everything on one GPU, or return None if the model has to be spread over several devices."""
    best = max(gpus, key=lambda device: gpus[device])
    if is_card(requested) and gpus[best] < total:
        raise _too_large(total, gpus, where=best, missing_bytes=total - gpus[best])
    first = next(iter(gpus))
    candidate = first if requested == "sequential" else best
    if gpus[candidate] >= total and (requested not in ("balanced", "balanced_low_0") or len(gpus) == 1):
        reserved = format_bytes(reserved_bytes)
        reason = f"all {format_bytes(total)} of weights fit on it, and {reserved} for KV cache and activations"
        return Placement({"": candidate}, {candidate: total}, (), Decision("device_map", candidate, reason))
    return None


def _place_explicitly(requested: Mapping[str, int | str], sizes: ModuleSizes) -> Placement:
    device_map = {module: device_name(target) for module, target in requested.items()}
    weights: dict[str, int] = {}
    unplaced = []

    def owner_of(module: str) -> str | None:
        return max((name for name in device_map if _inside(module, name)), key=len, default=None)

    for module, size in sizes.on_gpu.items():
        owner = owner_of(module)
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
    owners = [owner_of(module) for module in sizes.tied or ()]
    if len({device_map[owner] for owner in owners if owner is not None}) > 1:
        raise UserError(
            f"{' and '.join(sizes.tied or ())} share their weights, and the device map separates them",
            hint="give both the same device",
        )
    in_order = dict(sorted(weights.items(), key=lambda item: item[0] == "cpu"))
    return Placement(numbered(device_map), in_order, (), Decision("device_map", device_map, "asked for"))


def numbered(device_map: Mapping[str, str]) -> dict[str, int | str]:
    """Return a device map with numbers for GPUs if it has several devices."""
    if len(set(device_map.values())) < 2:
        return dict(device_map)
    return {
        module: int(device.partition(":")[2]) if is_card(device) else device for module, device in device_map.items()
    }


def _inside(module: str, parent: str) -> bool:
    return parent == "" or module == parent or module.startswith(f"{parent}.")


def _budgets(
    config: Config, machine: Machine, devices: tuple[str, ...], *, reserved: Reserved, quantized: bool
) -> dict[str, int]:
    """Return the bytes of weights that each device can hold, RAM last."""
    limits = {device_name(k): parse_bytes(v) for k, v in (config.load.max_memory or {}).items()}
    gpus = gpus_on(machine, devices)
    cards = [gpu for gpu in gpus if gpu.kind != "mps"]
    budgets: dict[str, int] = {}
    for gpu in cards:
        share = reserved.divided_bytes // len(cards) + reserved.whole_bytes
        budgets[gpu.device] = _gpu_budget(gpu, limits, share=share, quantized=quantized)
    ram = int(machine.ram_available_bytes * RAM_SHARE)
    for gpu in gpus:
        if gpu.kind == "mps":  # what Metal may use of the RAM
            ram = min(ram, gpu.free_bytes)
        elif gpu.shares_ram:  # nothing is gained by moving weights to the same memory
            ram = 0
    budgets["cpu"] = min(limits.get("cpu", limits.get("mps", 2**62)), ram)
    return budgets


def _gpu_budget(gpu: Gpu, limits: Mapping[str, int], *, share: int, quantized: bool) -> int:
    limit = limits.get(gpu.device)
    usable = limit if limit is not None else gpu.free_bytes - GPU_OVERHEAD_BYTES - share
    return max(int(usable * (QUANTIZING_SHARE if quantized else 1)), 0)


def _ram_limit(config: Config, machine: Machine, devices: tuple[str, ...]) -> str:
    """Return what the usable RAM is, for a sentence."""
    if {"cpu", "mps"} & {str(device) for device in config.load.max_memory or {}}:
        return "allowed by max_memory"
    return "usable by the Apple GPU" if devices == ("mps",) else "free"


@dataclass(frozen=True)
class _Ram:
    """The RAM: usable bytes, what they are, bytes of cache and activations, and the setting `load.overcommit`."""

    usable_bytes: int
    limit: str
    working_bytes: int
    overcommit: bool


def _place_whole(device: str, total: int, ram: _Ram, reason: str) -> Placement:
    """Place everything on one device that uses the RAM."""
    if total + ram.working_bytes > ram.usable_bytes and not ram.overcommit:
        raise MachineError(
            f"the weights take {format_bytes(total)}, cache and activations {format_bytes(ram.working_bytes)}; "
            f"{format_bytes(ram.usable_bytes)} of RAM are {ram.limit}",
            hint=SMALLER_MODEL,
            details={
                "weights_bytes": total,
                "working_bytes": ram.working_bytes,
                "ram_bytes": ram.usable_bytes,
                "missing_bytes": total + ram.working_bytes - ram.usable_bytes,
            },
        )
    return Placement({"": device}, {device: total}, (), Decision("device_map", device, reason))


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
    device_map: dict[str, str] = {}
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


def _spread(sizes: ModuleSizes, budgets: Mapping[str, int]) -> Placement:
    """Fill the GPUs, then RAM; nothing goes to disk."""
    filled = _fill(sizes.on_gpu, budgets, sizes.in_ram)
    if filled is None:
        *_, last = budgets
        _, unlimited = _fill(sizes.on_gpu, {**budgets, last: 2**62}, sizes.in_ram) or ({}, {last: sizes.total})
        missing = unlimited[last] - budgets[last]
        raise _too_large(sizes.total, budgets, where="the GPUs and RAM", missing_bytes=missing)
    device_map, weights = filled
    if sizes.tied is not None:
        head, embedding = sizes.tied
        device_map[head] = device_map[embedding]
    spilled = tuple(module for module, device in device_map.items() if device == "cpu")
    used = {device: size for device, size in weights.items() if size}
    split = ", ".join(f"{format_bytes(size)} on {device}" for device, size in used.items())
    total = format_bytes(sizes.total)
    reason = f"spilled: the GPUs have no room for all {total}" if spilled else "spread over the GPUs"
    return Placement(numbered(device_map), used, spilled, Decision("device_map", split, reason))


def _too_large(total: int, budgets: Mapping[str, int], *, where: str, missing_bytes: int) -> MachineError:
    room = ", ".join(f"{device} has room for {format_bytes(size)}" for device, size in budgets.items())
    return MachineError(
        f"the weights take {format_bytes(total)}, too much for {where}: {room}",
        hint=SMALLER_MODEL,
        details={"weights_bytes": total, "room_bytes": dict(budgets), "missing_bytes": missing_bytes},
    )
