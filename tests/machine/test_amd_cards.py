"""AMD's cards beside a torch that is not built for them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.machine.amd import AmdCard, read_amd_cards
from llmctl.machine.detection import read_machine
from support.nvml import GIB, FakeCard, FakeNvml

RX_7900 = AmdCard("AMD GPU", 24 * GIB, 23 * GIB)


def plant(drm: Path, name: str, **files: object) -> None:
    """Write what the kernel has about a display device."""
    folder = drm / name / "device"
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(f"{content}\n")


def test_a_card_with_memory_of_its_own_is_read_from_the_kernel(tmp_path: Path) -> None:
    vram = {"mem_info_vram_total": 24 * GIB, "mem_info_vram_used": GIB}
    plant(tmp_path, "card1", vendor="0x1002", **vram)
    plant(tmp_path, "card1-DP-1", vendor="0x1002", **vram)
    plant(tmp_path, "card2", vendor="0x1002", product_name="AMD Instinct MI210", **vram)
    assert read_amd_cards(tmp_path) == (RX_7900, AmdCard("AMD Instinct MI210", 24 * GIB, 23 * GIB))


@pytest.mark.parametrize(
    "files",
    [
        {"vendor": "0x1002", "mem_info_vram_total": GIB // 2, "mem_info_vram_used": 0},
        {"vendor": "0x10de", "mem_info_vram_total": 24 * GIB, "mem_info_vram_used": 0},
        {"vendor": "0x1002"},
        {},
    ],
    ids=["graphics of a processor", "another vendor", "another driver", "no vendor"],
)
def test_other_display_devices_are_no_cards(tmp_path: Path, files: dict[str, object]) -> None:
    plant(tmp_path, "card0", **files)
    assert read_amd_cards(tmp_path) == ()


def test_the_card_is_idle_with_a_torch_for_the_cpu(install: Callable[..., None]) -> None:
    install(None, amd=[RX_7900], cuda="")
    machine = read_machine()
    assert machine.gpus == ()
    assert [(gpu.kind, gpu.name, gpu.total_bytes) for gpu in machine.idle_gpus] == [("rocm", "AMD GPU", 24 * GIB)]


def test_the_card_is_not_mentioned_beside_one_that_torch_uses(install: Callable[..., None]) -> None:
    install(FakeNvml(FakeCard("NVIDIA L4", "GPU-4")), amd=[RX_7900])
    machine = read_machine()
    assert len(machine.gpus) == 1
    assert machine.idle_gpus == ()
