"""AMD's cards as the kernel's driver shows them in /sys, for a torch that is not built for them. Linux only."""

import re
from dataclasses import dataclass
from pathlib import Path

from llmctl.platform_support import read_system_file

_AMD = "0x1002"  # PCI's number of the vendor
_SMALLEST_BYTES = 4 << 30  # the graphics of a processor have less memory of their own


@dataclass(frozen=True)
class AmdCard:
    """A card: its name if the driver tells it, its memory, and how much of that is free."""

    name: str
    total_bytes: int
    free_bytes: int


def read_amd_cards(drm: Path = Path("/sys/class/drm")) -> tuple[AmdCard, ...]:
    """Return the cards in `drm` that have memory of their own, as documented for the module amdgpu of the kernel.

    https://docs.kernel.org/gpu/amdgpu/driver-misc.html
    """
    folders = [entry / "device" for entry in sorted(drm.glob("card*")) if re.fullmatch(r"card\d+", entry.name)]
    read = [_read_card(folder) for folder in folders]
    return tuple(card for card in read if card is not None and card.total_bytes >= _SMALLEST_BYTES)


def _read_card(folder: Path) -> AmdCard | None:
    total, used = (_text(folder, f"mem_info_vram_{part}") for part in ("total", "used"))
    if _text(folder, "vendor") != _AMD or not total.isdecimal() or not used.isdecimal():
        return None
    return AmdCard(_text(folder, "product_name") or "AMD GPU", int(total), max(int(total) - int(used), 0))


def _text(folder: Path, name: str) -> str:
    return read_system_file(str(folder / name)).strip()
