"""The description of this computer: read cheaply, without importing torch, or built by hand in a test."""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from llmctl.cpu import kernels
from llmctl.machine.threads import physical_cores
from llmctl.platform_support import read_system_file
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
        idle_gpus: GPUs that the driver shows but this build of torch cannot use.
        kernels: Instruction set of llmctl's own kernels for CPUs; None without them.
        compiler: C++ compiler that torch.compile would call, or an empty string.
        is_hypothetical: True for a machine that is only described; its packages are those that it should have.
        macos: Version of macOS, as (14, 5); None elsewhere. Apple's GPUs compute bfloat16 from 14 on.
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

    @property
    def cpu_multiplies_bf16(self) -> bool:
        """True if the processor has instructions for bfloat16 products (AVX512-BF16, AMX, Arm's BF16)."""
        return bool(self.cpu_features & {"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class NvidiaDriver:
    """NVIDIA's driver, as NVML shows it.

    Attributes:
        version: Version; None if NVML could not be queried.
        cuda: Newest CUDA version that it supports.
        error: NVML's error number; None if there was no error, or NVML is not installed.
        cards_on_bus: Number of NVIDIA cards on the PCI bus (Linux), with or without a driver.
    """

    version: str | None = None
    cuda: tuple[int, int] | None = None
    error: int | None = None
    cards_on_bus: int = 0


def read_machine() -> Machine:
    """Read the description of this computer. Imports neither torch nor transformers."""
    import psutil

    limit, _ = container_memory()
    total = min(psutil.virtual_memory().total, limit or 2**62)
    available = read_free_ram_bytes()
    packages = _packages()
    cpu_kernels = kernels.load()
    cuda = _torch_cuda_version()
    system, architecture = platform.system(), platform.machine()
    cards = _nvidia_gpus()
    gpus = cards if cuda else ()
    if system == "Darwin" and architecture == "arm64" and "torch" in packages:
        gpus = (Gpu(0, "Apple GPU", (0, 0), total, available, kind="mps", shares_ram=True),)
    return Machine(
        system=system,
        architecture=architecture,
        ram_total_bytes=total,
        ram_available_bytes=available,
        physical_cores=physical_cores(),
        cpu_features=_cpu_features(),
        gpus=gpus,
        packages=packages,
        torch_cuda=cuda,
        idle_gpus=() if cuda else cards,
        compiler=_compiler(),
        kernels=cpu_kernels.isa if cpu_kernels is not None else None,
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
    return versions


def _torch_cuda_version() -> str | None:
    """Return the CUDA version in torch's version.py, which can be read without importing torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _cpu_features() -> frozenset[str]:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", read_system_file("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(match[1].split() if match else ()) & frozenset(CPU_FEATURES)


def read_cpu_name() -> str:
    """Return the name of the processor; an empty string if it is unknown."""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", read_system_file("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.processor()


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


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def read_nvidia_driver() -> NvidiaDriver:
    """Ask NVIDIA's driver for its version, and the PCI bus for cards. Makes no CUDA context."""
    cards, nvml = _cards_on_bus(), _nvml()
    if nvml is None:
        return NvidiaDriver(cards_on_bus=cards)
    error = nvml.nvmlInit_v2()
    if error != 0:
        return NvidiaDriver(error=error, cards_on_bus=cards)
    try:
        text, cuda = ctypes.create_string_buffer(80), ctypes.c_int()
        nvml.nvmlSystemGetDriverVersion(text, 80)
        nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))
    finally:
        nvml.nvmlShutdown()
    # 12040 is 12.4 (NVML_CUDA_DRIVER_VERSION_MAJOR and _MINOR)
    version = text.value.decode(errors="replace") or None
    return NvidiaDriver(version, (cuda.value // 1000, cuda.value % 1000 // 10) if cuda.value else None, None, cards)


def _cards_on_bus() -> int:
    """Count display controllers (PCI class 03) of NVIDIA (vendor 10de)."""
    count = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, pci_class = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == "0x10de" and pci_class.startswith("0x03")
    return count


def _nvml() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libnvidia-ml.so.1" if os.name != "nt" else "nvml.dll")
    except OSError:
        return None


def _nvidia_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA cards that the driver shows and CUDA_VISIBLE_DEVICES allows, through NVML (no CUDA context)."""
    nvml = _nvml()
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        cards = [_nvidia_gpu(nvml, number) for number in range(count.value)]
    finally:
        nvml.nvmlShutdown()
    chosen = _visible([card for card in cards if card is not None])
    return tuple(
        Gpu(index, card.name, card.capability, card.total_bytes, card.free_bytes) for index, card in enumerate(chosen)
    )


def _nvidia_gpu(nvml: ctypes.CDLL, number: int) -> Gpu | None:
    handle = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)) != 0:
        return None
    name = ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetName(handle, name, 96)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), _NvmlMemory()
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    text = name.value.decode(errors="replace")
    return Gpu(number, text, (major.value, minor.value), memory.total, memory.free)


def _visible(cards: list[Gpu]) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does for numbers: stop at the first one that does not exist."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return cards
    chosen = []
    for item in wanted.split(","):
        text = item.strip()
        if not text.isdigit() or int(text) >= len(cards):
            break
        chosen.append(cards[int(text)])
    return chosen


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
