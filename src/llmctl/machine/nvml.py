"""NVIDIA's cards and driver as NVML shows them: no CUDA context is made, and torch is not imported.

Every call's return code is checked: where the driver does not tell something, the reader is told so, instead of
a size of 0 or a capability of 0.0. Functions and codes: https://docs.nvidia.com/deploy/nvml-api/.
"""

import ctypes
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SUCCESS, NOT_SUPPORTED, FUNCTION_NOT_FOUND = 0, 3, 13  # nvmlReturn_t


@dataclass(frozen=True)
class NvidiaCard:
    """A card, or a slice of one (MIG).

    Attributes:
        name: Name; a slice's ends with its profile, as in `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
        uuid: `GPU-…`, or `MIG-…` for a slice.
        capability: CUDA compute capability.
        total_bytes: Memory; None for a card without memory of its own, which uses the RAM (GB10, Jetson).
        free_bytes: Free memory; None as above.
        is_partitioned: True if the card is in MIG mode, so that CUDA can use its slices but not the card.
        slices: Slices of a partitioned card.
    """

    name: str
    uuid: str
    capability: tuple[int, int]
    total_bytes: int | None
    free_bytes: int | None
    is_partitioned: bool = False
    slices: tuple["NvidiaCard", ...] = ()


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


def read_nvidia_cards() -> tuple[NvidiaCard, ...] | None:
    """Return the cards in NVML's order, that of the PCI bus; None if NVML is missing or does not describe them all."""
    nvml = _open()
    if nvml is None or nvml.call("nvmlInit_v2") != SUCCESS:
        return None
    try:
        count = nvml.numbers("nvmlDeviceGetCount_v2", count=1)
        if count is None:
            return None
        handles = [nvml.handle("nvmlDeviceGetHandleByIndex_v2", number) for number in range(count[0])]
        # a container may see the number of a card that it may not use
        cards = [_read_card(nvml, handle) for handle in handles if handle is not None]
        described = tuple(card for card in cards if card is not None)
        return described if len(described) == len(cards) else None
    finally:
        nvml.call("nvmlShutdown")


def read_nvidia_driver() -> NvidiaDriver:
    """Ask NVIDIA's driver for its version, and the PCI bus for cards."""
    cards, nvml = _cards_on_bus(), _open()
    if nvml is None:
        return NvidiaDriver(cards_on_bus=cards)
    error = nvml.call("nvmlInit_v2")
    if error != SUCCESS:
        return NvidiaDriver(error=error, cards_on_bus=cards)
    try:
        version = nvml.text("nvmlSystemGetDriverVersion")
        number = nvml.numbers("nvmlSystemGetCudaDriverVersion_v2", count=1)
    finally:
        nvml.call("nvmlShutdown")
    # 12040 is 12.4 (NVML_CUDA_DRIVER_VERSION_MAJOR and _MINOR)
    cuda = (number[0] // 1000, number[0] % 1000 // 10) if number and number[0] else None
    return NvidiaDriver(version, cuda, None, cards)


def driver_is_present(root: Path = Path("/")) -> bool:
    """Return True if there are traces of a driver that CUDA can use, even where NVML is missing.

    Containers without the capability `utility` have device files but no NVML; Jetson's are nvhost-gpu and nvgpu. Every
    container of such a host shows /proc/driver/nvidia, and every WSL 2 /dev/dxg, which is why these do not count.
    """
    if os.name == "nt":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").is_file()
    names = ("dev/nvhost-gpu", "dev/nvgpu", "usr/lib/wsl/lib/libcuda.so.1")
    return any((root / name).exists() for name in names) or any((root / "dev").glob("nvidia[0-9]*"))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Nvml:
    """NVML's functions. An older library lacks some; calling one is an error code, as NVML itself returns it."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function and return its code."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            return FUNCTION_NOT_FOUND
        return int(function(*arguments))

    def handle(self, name: str, *arguments: Any) -> ctypes.c_void_p | None:
        """Return the handle that a function writes last; None after an error."""
        handle = ctypes.c_void_p()
        return handle if self.call(name, *arguments, ctypes.byref(handle)) == SUCCESS else None

    def text(self, name: str, *arguments: Any) -> str | None:
        """Return the text that a function writes; None after an error."""
        text = ctypes.create_string_buffer(96)
        if self.call(name, *arguments, text, ctypes.c_uint(len(text))) != SUCCESS:
            return None
        return text.value.decode(errors="replace") or None

    def numbers(self, name: str, *arguments: Any, count: int) -> tuple[int, ...] | None:
        """Return the `count` integers that a function writes into its last arguments; None after an error."""
        written = [ctypes.c_int() for _ in range(count)]
        if self.call(name, *arguments, *map(ctypes.byref, written)) != SUCCESS:
            return None
        return tuple(number.value for number in written)


def _open() -> _Nvml | None:
    library = load_library()
    return _Nvml(library) if library is not None else None


def load_library() -> Any:
    """Return NVML's library; None if it is not installed."""
    try:
        return ctypes.CDLL("libnvidia-ml.so.1" if os.name != "nt" else "nvml.dll")
    except OSError:
        return None


def _read_card(nvml: _Nvml, handle: ctypes.c_void_p) -> NvidiaCard | None:
    """Return a card with its slices; None if NVML does not tell its capability or its memory."""
    capability = nvml.numbers("nvmlDeviceGetCudaComputeCapability", handle, count=2)
    if capability is None:
        return None
    major, minor = capability
    card = _describe(nvml, handle, (major, minor))
    mode = nvml.numbers("nvmlDeviceGetMigMode", handle, count=2)  # the current one, and the one after a reset
    if card is None or mode is None or not mode[0]:
        return card
    limit = nvml.numbers("nvmlDeviceGetMaxMigDeviceCount", handle, count=1) or (0,)
    found = [nvml.handle("nvmlDeviceGetMigDeviceHandleByIndex", handle, number) for number in range(limit[0])]
    slices = [_describe(nvml, one, card.capability) for one in found if one is not None]  # the numbers have gaps
    return replace(card, is_partitioned=True, slices=tuple(one for one in slices if one is not None))


def _describe(nvml: _Nvml, handle: ctypes.c_void_p, capability: tuple[int, int]) -> NvidiaCard | None:
    """Return a card or a slice; None if its memory cannot be read, which is not the same as having none of its own."""
    memory = _Memory()
    code = nvml.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    if code not in (SUCCESS, NOT_SUPPORTED):
        return None
    # GB10 and Jetson answer "not supported" (Syllo/nvtop#411), and some drivers a size of 0: their memory is the RAM
    has_own = code == SUCCESS and memory.total > 0
    return NvidiaCard(
        nvml.text("nvmlDeviceGetName", handle) or "NVIDIA GPU",
        nvml.text("nvmlDeviceGetUUID", handle) or "",
        capability,
        memory.total if has_own else None,
        memory.free if has_own else None,
    )


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
