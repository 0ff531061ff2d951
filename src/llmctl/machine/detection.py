"""The description of this computer: read cheaply, without importing torch, or built by hand in a test."""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from llmctl.cpu import kernels
from llmctl.machine.amd import read_amd_cards
from llmctl.machine.apple import read_mac
from llmctl.machine.nvml import NvidiaCard, driver_is_present, read_nvidia_cards
from llmctl.machine.threads import physical_cores
from llmctl.machine.torch_build import TorchBuild, has_code_for, read_architectures, read_torch_build
from llmctl.machine.torch_gpus import TorchGpu, may_find_gpus, torch_gpus
from llmctl.machine.visible_devices import AMD_VARIABLES, VARIABLE, hides_everything, only_cuda_knows, visible_cards
from llmctl.platform_support import read_sysctl, read_system_file
from llmctl.quant.checkpoint_formats import packages_of_formats

PACKAGES = (
    "transformers",
    "torch",
    "accelerate",
    "bitsandbytes",
    "flash_attn",
    "kernels",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "triton",
    "optimum-quanto",
    "hqq",
    "peft",
    "llguidance",
    "pillow",
    *(package.name for package in packages_of_formats()),
)
# The flags of /proc/cpuinfo on which the speed of a model depends, in Linux's spelling.
CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)


def cuda_device(index: int | str) -> str:
    """Return torch's name of a CUDA device."""
    return f"cuda:{index}"


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Attributes:
        index: Number, as in `cuda:0`.
        name: Name given by the driver.
        capability: CUDA compute capability, or the major and minor number of AMD's gfx version ((9, 4) for gfx942, so
            it must not be compared with NVIDIA's); (0, 0) for Intel's and Apple's.
        total_bytes: Memory that it can use. For Apple's: the recommended working set, which is less than the RAM.
        free_bytes: Memory that is free now.
        kind: `cuda` for NVIDIA's, `rocm` for AMD's (`cuda:N` in torch), `xpu` for Intel's, `mps` for Apple's.
        torch_has_code: False if this build of torch has no code for it, so that its first kernel would fail; True if it
            has; None if it is unknown, and should be assumed to work.
        shares_ram: True if its memory is the machine's RAM, so that the two must not be added: Apple's, NVIDIA's GB10
            and Jetson, processors with graphics.
    """

    index: int
    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    kind: Literal["cuda", "rocm", "xpu", "mps"] = "cuda"
    torch_has_code: bool | None = None
    shares_ram: bool = False

    @property
    def device(self) -> str:
        """The name of the device in torch: `cuda:0` (AMD's, too), `xpu:0`, or `mps`."""
        if self.kind == "mps":
            return "mps"
        return f"xpu:{self.index}" if self.kind == "xpu" else cuda_device(self.index)


@dataclass(frozen=True)
class Machine:
    """This computer, or a hypothetical one.

    Attributes:
        system: `Linux`, `Darwin` or `Windows`.
        architecture: `x86_64`, `arm64`, …
        cpu_features: Features of `CPU_FEATURES` that the processor has.
        physical_cores: Cores, not threads.
        ram_total_bytes: RAM, or the container's limit if that is lower.
        ram_available_bytes: RAM that a new process can take.
        gpus: GPUs that this build of torch can use.
        packages: Versions of installed packages by name.
        torch_cuda: CUDA version that torch is built for, or None.
        idle_gpus: GPUs that the driver shows but this build of torch is not made for, if it can use no other.
        kernels: Instruction set of llmctl's own kernels for CPUs; None without them.
        compiler: C++ compiler that torch.compile would call, or an empty string.
        is_hypothetical: True for a machine that is only described; its packages are those that it should have.
        macos: Version of macOS, as (14, 5); None elsewhere. Apple's GPUs compute bfloat16 from 14 on.
        torch_is_silent: True if torch was asked for its GPUs and did not answer, so that there may be some.
    """

    system: str
    architecture: str
    ram_total_bytes: int
    ram_available_bytes: int
    physical_cores: int = 1
    cpu_features: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    torch_cuda: str | None = None
    idle_gpus: tuple[Gpu, ...] = ()
    compiler: str = ""
    kernels: str | None = None
    is_hypothetical: bool = False
    macos: tuple[int, int] | None = None
    torch_is_silent: bool = False

    @property
    def cpu_multiplies_bf16(self) -> bool:
        """True if the processor has instructions for bfloat16 products (AVX512-BF16, AMX, Arm's BF16)."""
        return bool(self.cpu_features & {"avx512_bf16", "amx_bf16", "bf16"})


def read_machine() -> Machine:
    """Read the description of this computer. Imports neither torch nor transformers."""
    import psutil

    limit, _ = container_memory()
    ram = _Ram(min(psutil.virtual_memory().total, limit or 2**62), read_free_ram_bytes())
    cpu_kernels, build = kernels.load(), read_torch_build()
    mac = read_mac(ram_bytes=ram.total_bytes)
    answer = _usable_gpus(build, ram)
    gpus = answer or ()
    if mac is not None and build is not None:
        usable = mac.working_set_bytes
        gpus = (Gpu(0, mac.chip, (0, 0), usable, min(usable, ram.available_bytes), kind="mps", shares_ram=True),)
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        ram_total_bytes=ram.total_bytes,
        ram_available_bytes=ram.available_bytes,
        physical_cores=physical_cores(),
        cpu_features=_cpu_features(),
        gpus=gpus,
        packages=_packages(),
        torch_cuda=build.cuda if build is not None else None,
        idle_gpus=() if gpus else _idle_gpus(build, ram),
        compiler=_compiler(),
        kernels=cpu_kernels.isa if cpu_kernels is not None else None,
        macos=mac.macos if mac is not None else None,
        torch_is_silent=answer is None,
    )


@dataclass(frozen=True)
class _Ram:
    """The RAM of this computer, and what a new process can take of it."""

    total_bytes: int
    available_bytes: int


def _usable_gpus(build: TorchBuild | None, ram: _Ram) -> tuple[Gpu, ...] | None:
    """Return the GPUs that torch shows this process, in its order; None if only torch knows and it does not answer."""
    if build is None:
        return ()
    if build.cuda:
        return _nvidia_gpus(build, ram)
    if not (build.hip or build.xpu) or not may_find_gpus(is_amd=build.hip is not None):
        return ()
    hidden = build.hip is not None and any(hides_everything(os.environ.get(name)) for name in AMD_VARIABLES)
    return () if hidden else _asked_gpus(ram)


def _idle_gpus(build: TorchBuild | None, ram: _Ram) -> tuple[Gpu, ...]:
    """Return NVIDIA's cards if torch is built without CUDA, and AMD's if it is built without ROCm."""
    cards = read_nvidia_cards() if build is None or not build.cuda else None
    shown = visible_cards(cards or (), os.environ.get(VARIABLE))
    nvidia = [_gpu_of_card(index, card, ram) for index, card in enumerate(shown)]
    others = read_amd_cards() if build is None or not build.hip else ()
    amd = [Gpu(n, one.name, (0, 0), one.total_bytes, one.free_bytes, "rocm") for n, one in enumerate(others)]
    return (*nvidia, *amd)


def _nvidia_gpus(build: TorchBuild, ram: _Ram) -> tuple[Gpu, ...] | None:
    """Return NVIDIA's cards as NVML describes them; as torch does where NVML cannot tell them or their order."""
    setting = os.environ.get(VARIABLE)
    if hides_everything(setting):
        return ()
    cards = read_nvidia_cards()
    if only_cuda_knows(cards, os.environ) if cards else cards is None and driver_is_present():
        asked = _asked_gpus(ram)
        if asked or cards is None:
            return asked
    shown = visible_cards(cards or (), setting)
    architectures = read_architectures(build.folder) if shown else ()
    return tuple(_gpu_of_card(index, card, ram, architectures) for index, card in enumerate(shown))


def _gpu_of_card(index: int, card: NvidiaCard, ram: _Ram, architectures: Sequence[str] = ()) -> Gpu:
    return Gpu(
        index,
        card.name,
        card.capability,
        ram.total_bytes if card.total_bytes is None else card.total_bytes,
        ram.available_bytes if card.free_bytes is None else card.free_bytes,
        torch_has_code=has_code_for(card.capability, architectures),
        shares_ram=card.total_bytes is None,
    )


def _asked_gpus(ram: _Ram) -> tuple[Gpu, ...] | None:
    """Return the GPUs that torch names when it is asked; None if it does not answer."""
    answer = torch_gpus()
    return None if answer is None else tuple(_gpu_of_torch(index, gpu, ram) for index, gpu in enumerate(answer))


def _gpu_of_torch(index: int, gpu: TorchGpu, ram: _Ram) -> Gpu:
    """Return a GPU as torch describes it.

    CUDA counts the pages of files in the RAM as used, which the system would give away: a card that uses the RAM can
    take what a process can (https://nvidia.custhelp.com/app/answers/detail/a_id/5728).
    """
    total, free = gpu["total_bytes"], gpu["free_bytes"]
    if gpu["shares_ram"]:
        limit = total if free is None or gpu["kind"] == "cuda" else free
        free = min(limit, ram.available_bytes)
    return Gpu(
        index,
        gpu["name"],
        gpu["capability"],
        total,
        total if free is None else free,
        gpu["kind"],
        gpu["torch_has_code"],
        gpu["shares_ram"],
    )


def read_free_ram_bytes() -> int:
    """Return the RAM that a process can take now: free in the system, or left in the container if that is less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit, used = container_memory()
    return max(0, min(available, limit - used) if limit else available)


def _compiler() -> str:
    """Return the C++ compiler that torch's inductor would call (torch._inductor.config.cpp.cxx), if it is installed."""
    name = os.environ.get("CXX") or ("clang++" if platform.system() == "Darwin" else "g++")
    return name if shutil.which(name) else ""


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    # a flash_attn whose compiled part is for another Python, or was never built, is none; AMD's may need no such part
    if importlib.util.find_spec("flash_attn_2_cuda") is None and "FLASH_ATTENTION_TRITON_AMD_ENABLE" not in os.environ:
        versions.pop("flash_attn", None)
    return versions


def _cpu_features() -> frozenset[str]:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", read_system_file("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(match[1].split() if match else ()) & frozenset(CPU_FEATURES)


def read_cpu_name() -> str:
    """Return the name of the processor; an empty string if it is unknown."""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", read_system_file("/proc/cpuinfo"), re.MULTILINE)
    if match:
        return match[1].strip()
    return read_sysctl("machdep.cpu.brand_string").rstrip(b"\0").decode(errors="replace") or platform.processor()


def container_memory() -> tuple[int | None, int]:
    """Return the memory limit of this process' cgroup (v2), or None, and the bytes in use."""
    root = Path("/sys/fs/cgroup")
    try:
        path = read_system_file("/proc/self/cgroup").strip().splitlines()[-1].split("::")[-1]
        folder = root / path.lstrip("/")
        folder = folder if (folder / "memory.max").is_file() else root
        limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
        if limit == "max":
            return None, 0
        return int(limit), int((folder / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError, IndexError):
        return None, 0


def measure_ram_bandwidth(*, threads: int | None = None) -> float:
    """Measure the bytes per second that copying moves through RAM, reads and writes counted, on all physical cores.

    The result is the best of a few rounds, so that other work on the machine matters little. Takes 0.1 s.
    """
    import threading
    import time

    size, rounds = 64_000_000, 3
    count = threads or min(physical_cores(), 8)
    pairs = [(ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)) for _ in range(count)]
    best = 0.0
    for _ in range(rounds + 1):  # the first round faults the pages in
        workers = [threading.Thread(target=ctypes.memmove, args=(to, source, size)) for to, source in pairs]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, 2 * size * count / (time.perf_counter() - began))
    return best
