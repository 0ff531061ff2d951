"""The abilities of GPUs on which decisions depend. Pure."""

from collections.abc import Iterable

from llmctl.machine.detection import Gpu, Machine

# Tensor cores and torch's fused kernels for bfloat16, and its fused attention with grouped heads, begin here.
AMPERE = (8, 0)
_MACOS_WITH_BFLOAT16 = (14, 0)  # torch/mps: bfloat16 tensors need macOS 14


def is_card(device: str) -> bool:
    """Return True for torch's name of a GPU that is not a Mac's: `cuda:0`, `xpu:1`."""
    return device.startswith(("cuda", "xpu"))


def gpus_on(machine: Machine, devices: Iterable[str]) -> tuple[Gpu, ...]:
    """Return the GPUs among some devices."""
    wanted = set(devices)
    return tuple(gpu for gpu in machine.gpus if gpu.device in wanted)


def usable_gpus(machine: Machine) -> tuple[Gpu, ...]:
    """Return the GPUs that this build of torch has code for, as far as that is known."""
    return tuple(gpu for gpu in machine.gpus if gpu.torch_has_code is not False)


def no_code(gpu: Gpu, machine: Machine) -> str:
    """Return the sentence about a GPU that this build of torch has no code for."""
    torch = f"torch {machine.packages.get('torch', '')}".strip()
    if gpu.kind == "cuda":
        return f"this {torch} has no code for {gpu.name} (compute capability {number(gpu)})"
    return f"this {torch} has no code for {gpu.name}"


def number(gpu: Gpu) -> str:
    """Return the compute capability as it is written: `8.9`."""
    return ".".join(map(str, gpu.capability))


def is_before_ampere(gpu: Gpu) -> bool:
    """Return True for an NVIDIA GPU of compute capability below 8.0; the numbers of other makers mean other things."""
    return gpu.kind == "cuda" and gpu.capability < AMPERE


def computes_bfloat16(gpu: Gpu, machine: Machine) -> bool:
    """Return True if a GPU has instructions for bfloat16, or its maker's libraries compute it well."""
    if gpu.kind == "mps":
        return machine.macos is None or machine.macos >= _MACOS_WITH_BFLOAT16
    return not is_before_ampere(gpu)


def why_no_bfloat16(gpu: Gpu, machine: Machine) -> str:
    """Return why a GPU does not compute bfloat16 well."""
    if gpu.kind == "mps":
        return f"bfloat16 on an Apple GPU needs macOS 14, this is {'.'.join(map(str, machine.macos or ()))}"
    return f"{gpu.name} has compute capability {number(gpu)}, bfloat16 needs 8.0 or more"


def fuses_grouped_attention(gpu: Gpu) -> bool:
    """Return True if torch's fused attention takes fewer heads of keys than of queries on this GPU (`enable_gqa`).

    Below compute capability 8.0 only the memory-efficient kernel runs, which does not take them, and scores of
    every token with every token are stored instead (torch: sdp_utils.cpp). Apple's attention is left out to be safe.
    """
    return gpu.kind != "mps" and not is_before_ampere(gpu)
