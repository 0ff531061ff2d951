"""Apple's computers: the chip, the version of macOS, and how much of the memory its GPU can use."""

import platform
from dataclasses import dataclass

from llmctl.platform_support import read_sysctl

GIB = 2**30


@dataclass(frozen=True)
class Mac:
    """A Mac with a chip of Apple.

    Attributes:
        chip: Chip, as in `Apple M3 Max`.
        macos: Version of macOS, as in (14, 5); None if it is unknown.
        working_set_bytes: Memory that Metal recommends for the GPU at most.
    """

    chip: str
    macos: tuple[int, int] | None
    working_set_bytes: int


def read_mac(*, ram_bytes: int) -> Mac | None:
    """Return this Mac; None for another computer, and for one with a processor of Intel."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return None
    chip = read_sysctl("machdep.cpu.brand_string").rstrip(b"\0").decode(errors="replace").strip()
    # platform.mac_ver() can be a version to which macOS pretends for old programs
    version = read_sysctl("kern.osproductversion").rstrip(b"\0").decode(errors="replace") or platform.mac_ver()[0]
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    macos = (int(major), int(minor) if minor.isdecimal() else 0) if major.isdecimal() else None
    # the limit that `sudo sysctl iogpu.wired_limit_mb=…` sets; 0 without one
    limit = int.from_bytes(read_sysctl("iogpu.wired_limit_mb"), "little") << 20
    return Mac(chip or "Apple GPU", macos, min(limit, ram_bytes) or working_set_bytes(ram_bytes))


def working_set_bytes(ram_bytes: int) -> int:
    """Return how much of the RAM Metal recommends for the GPU: two thirds, and three quarters of more than 32 GiB.

    Reported by users as recommendedMaxWorkingSetSize: 10.7 GiB of 16, 21.3 of 32, 27 of 36, 48 of 64
    (ggml-org/llama.cpp#1826, #1870). Newer versions of macOS allow more of a large memory.
    """
    return ram_bytes * 2 // 3 if ram_bytes <= 32 * GIB else ram_bytes * 3 // 4
