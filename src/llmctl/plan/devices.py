"""The choice of the devices that a model may use, before its size is known. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmctl.config import Config
from llmctl.errors import MachineError
from llmctl.machine.detection import Gpu, Machine, cuda_device
from llmctl.plan.gpus import computes_bfloat16, no_code, usable_gpus

_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
_OTHER_TORCH = "install a torch that has it (pytorch.org lists the builds by CUDA version), or use --device-map cpu"
_SILENT = "torch was asked for its GPUs and did not answer (llmctl doctor examines it)"
_BUILDS = {"cuda": "CUDA", "rocm": "ROCm", "xpu": "Intel's XPU", "mps": "Metal"}


@dataclass(frozen=True)
class DeviceChoice:
    """Devices that a model may use together.

    Attributes:
        devices: Their names; ("cpu",) for RAM alone.
        reason: The reason for these and no others; empty if there is nothing to say.
    """

    devices: tuple[str, ...]
    reason: str = ""


def device_choices(config: Config, machine: Machine, *, quantizes: bool) -> tuple[DeviceChoice, ...]:
    """Return the devices that may be used, before sizes are known: several choices in the order of preference.

    GPUs without bfloat16 are left out beside others, so that all compute in it, as long as the others have the room.

    Args:
        quantizes: True if weights are quantised while they are loaded, which no backend does on an Apple GPU.

    Raises:
        MachineError: the device map names a device that this machine lacks, or that this torch has no code for.
    """
    requested = config.load.device_map
    if requested not in _SPREADING:
        return (DeviceChoice(_named_devices(requested, machine)),)
    gpus = usable_gpus(machine)
    if not gpus:
        return (DeviceChoice(("cpu",), _why_no_gpu(machine)),)
    if quantizes and gpus[0].kind == "mps":
        reason = "weights are quantised for the CPU's kernels: no backend quantises on an Apple GPU"
        return (DeviceChoice(("cpu",), reason),)
    unusable = [gpu for gpu in machine.gpus if gpu not in gpus]
    every = DeviceChoice(tuple(gpu.device for gpu in gpus), _left_out(unusable, "this torch has no code for it"))
    modern = tuple(gpu.device for gpu in gpus if computes_bfloat16(gpu, machine))
    if requested != "auto" or len(modern) in (0, len(gpus)):
        return (every,)
    old = [gpu for gpu in gpus if gpu.device not in modern]
    left_out = "; ".join(filter(None, (_left_out(old, "it computes no bfloat16"), every.reason)))
    return DeviceChoice(modern, left_out), every


def candidate_devices(config: Config, machine: Machine) -> tuple[str, ...]:
    """Return all devices that an unquantised model may use. Raise MachineError as `device_choices` does."""
    return device_choices(config, machine, quantizes=False)[-1].devices


def _named_devices(requested: str | Mapping[str, int | str], machine: Machine) -> tuple[str, ...]:
    targets: Sequence[int | str] = (requested,) if isinstance(requested, str) else tuple(requested.values())
    named = tuple(dict.fromkeys(device_name(target) for target in targets))
    available = {gpu.device: gpu for gpu in machine.gpus}
    for device in named:
        if device != "cpu" and device not in available:
            raise MachineError(
                f"there is no {device} on this machine: {_describe_gpus(machine)}", hint="use --device-map auto or cpu"
            )
        if device != "cpu" and available[device].torch_has_code is False:
            raise MachineError(no_code(available[device], machine), hint=_OTHER_TORCH)
    # a GPU first, as where llmctl places the modules itself
    return tuple(sorted(named, key=lambda device: device == "cpu"))


def _left_out(gpus: Sequence[Gpu], why: str) -> str:
    return f"{' and '.join(dict.fromkeys(gpu.name for gpu in gpus))} left out: {why}" if gpus else ""


def device_name(target: int | str) -> str:
    """Return torch's name of a device: `0`, `"0"`, `cuda` and `cuda:0` are all `cuda:0`."""
    text = str(target)
    if text.isdigit():
        return cuda_device(text)
    return f"{text}:0" if text in ("cuda", "xpu") else text


def _describe_gpus(machine: Machine) -> str:
    if machine.gpus:
        return ", ".join(f"{gpu.device} {gpu.name}" for gpu in machine.gpus)
    if machine.idle_gpus:
        idle = machine.idle_gpus[0]
        return f"{idle.name} is present, but this torch is built without {_BUILDS[idle.kind]}"
    return _SILENT if machine.torch_is_silent else "no GPU was found"


def _why_no_gpu(machine: Machine) -> str:
    if machine.gpus:
        return no_code(machine.gpus[0], machine)
    if machine.idle_gpus:
        idle = machine.idle_gpus[0]
        return f"this torch is built without {_BUILDS[idle.kind]}, so the {idle.name} cannot be used"
    return _SILENT if machine.torch_is_silent else "no GPU was found"
