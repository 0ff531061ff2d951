"""Known GPUs: by the names that drivers give, and as machines to plan for."""

import pytest

from llmctl.errors import UserError
from llmctl.machine.apple import GIB
from llmctl.machine.cards import CARDS, CHIPS, card_of, rates_of
from llmctl.machine.detection import Gpu
from llmctl.machine.presets import preset_machine


def gpu(name: str, gib: float, kind: str = "cuda") -> Gpu:
    return Gpu(0, name, (8, 0), int(gib * GIB), int(gib * GIB), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", CARDS)
def test_every_card_is_found_by_its_own_name(key: str) -> None:
    card = CARDS[key]
    assert card_of(gpu(card.name, card.memory_gib, card.kind)) is card


@pytest.mark.parametrize(
    ("name", "gib", "key"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, "rtx4090-laptop"),
        ("NVIDIA H100 PCIe", 80, "h100-pcie"),
        ("NVIDIA A100 80GB PCIe", 80, "a100-pcie-80"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, "rtx4070tisuper"),
        ("Tesla V100-PCIE-32GB", 31.7, "v100-pcie-32"),
        ("GRID A100-10C", 10, "a100-40"),
        ("Quadro RTX 6000", 24, None),
        ("NVIDIA GeForce RTX 4090 D", 24, None),
        ("NVIDIA GeForce RTX 4050 Laptop GPU", 6, None),
        ("NVIDIA Graphics Device", 24, None),
        ("", 24, None),
    ],
)
def test_variants_of_a_card_have_their_own_figures(name: str, gib: float, key: str | None) -> None:
    assert card_of(gpu(name, gib)) is (CARDS[key] if key else None)


@pytest.mark.parametrize(
    ("name", "gib", "kind", "key"),
    [
        ("AMD Radeon RX 7900 XTX", 24, "rocm", "rx7900xtx"),
        ("AMD Radeon RX 7900 XT", 20, "rocm", "rx7900xt"),
        ("Intel(R) Arc(TM) B580 Graphics", 11.9, "xpu", "arc-b580"),
        ("Intel(R) Arc(TM) Pro B60 Graphics", 24, "xpu", "arc-pro-b60"),
    ],
)
def test_cards_of_amd_and_intel_are_known(name: str, gib: float, kind: str, key: str) -> None:
    assert card_of(gpu(name, gib, kind)) is CARDS[key]


def test_a_slice_has_its_share_of_the_bandwidth_and_of_the_rate() -> None:
    whole = rates_of(gpu("NVIDIA A100-SXM4-40GB", 40))
    part = rates_of(gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.75))
    assert whole is not None
    assert part is not None
    assert part.bandwidth == pytest.approx(whole.bandwidth / 8)
    assert part.operations == pytest.approx(whole.operations / 7)


@pytest.mark.parametrize(
    ("name", "gib", "bandwidth"),
    [
        ("Apple M1", 10.67, 68),
        ("Apple M1 Max", 48, 400),
        ("Apple M3 Max", 27, 300),
        ("Apple M3 Max", 48, 400),
        ("Apple M4 Max", 27, 410),
        ("Apple M4 Max", 96, 546),
        ("Apple M9", 27, None),
    ],
)
def test_the_chip_of_a_mac_has_its_own_bandwidth(name: str, gib: float, bandwidth: float | None) -> None:
    rates = rates_of(gpu(name, gib, "mps"))
    assert (rates.bandwidth / 1e9 if rates else None) == bandwidth


# -- machines to plan for


@pytest.mark.parametrize(
    ("name", "names", "gib"),
    [
        ("t4", ["Tesla T4"], 15),
        ("v100", ["Tesla V100-SXM2-16GB"], 16),
        ("rtx4090", ["NVIDIA GeForce RTX 4090"], 24),
        ("rtx4090+gtx1660", ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce GTX 1660"], 24),
        ("2xrtx3090", ["NVIDIA GeForce RTX 3090"] * 2, 24),
        ("2xrtx3090+t4", ["NVIDIA GeForce RTX 3090"] * 2 + ["Tesla T4"], 24),
        ("h100", ["NVIDIA H100 80GB HBM3"], 80),
        ("mi300x", ["AMD Instinct MI300X"], 192),
        ("arc-b580", ["Intel(R) Arc(TM) B580 Graphics"], 12),
    ],
)
def test_a_machine_is_a_list_of_cards(name: str, names: list[str], gib: float) -> None:
    machine = preset_machine(name)
    assert [gpu.name for gpu in machine.gpus] == names
    assert [gpu.index for gpu in machine.gpus] == list(range(len(names)))
    assert machine.gpus[0].total_bytes == gib * GIB
    assert all(rates_of(gpu) is not None for gpu in machine.gpus)
    assert machine.ram_total_bytes > sum(gpu.total_bytes for gpu in machine.gpus)


@pytest.mark.parametrize(("name", "device"), [("mi300x", "cuda:0"), ("arc-b580", "xpu:0"), ("h100", "cuda:0")])
def test_the_cards_of_all_vendors_have_torchs_names_of_devices(name: str, device: str) -> None:
    machine = preset_machine(name)
    assert machine.gpus[0].device == device
    assert (machine.torch_cuda is not None) == ("flash_attn" in machine.packages) == (name == "h100")


@pytest.mark.parametrize(
    ("name", "ram", "usable"), [("m1-16", 16, 10.67), ("m4-max-64", 64, 48), ("m3-max-36", 36, 27), ("m2-24", 24, 16)]
)
def test_a_mac_has_less_memory_for_its_gpu_than_it_has(name: str, ram: int, usable: float) -> None:
    machine = preset_machine(name)
    assert machine.ram_total_bytes == ram * GIB
    assert machine.gpus[0].total_bytes == pytest.approx(usable * GIB, rel=0.001)
    assert machine.gpus[0].shares_ram
    assert rates_of(machine.gpus[0]) is not None
    assert machine.macos is not None


def test_every_size_of_every_chip_is_a_machine() -> None:
    for chip in CHIPS:
        for size in chip.memory_gib:
            machine = preset_machine(f"{chip.name.lower().replace(' ', '-')}-{size}")
            rates = rates_of(machine.gpus[0])
            assert rates is not None
            assert rates.bandwidth == chip.bandwidth_gb * 1e9


def test_a_card_that_uses_the_ram_is_not_counted_twice() -> None:
    machine = preset_machine("gb10")
    assert machine.gpus[0].shares_ram
    assert machine.gpus[0].total_bytes == machine.ram_total_bytes
    assert machine.gpus[0].free_bytes <= machine.ram_available_bytes
    assert machine.architecture == "aarch64"


def test_cards_of_several_vendors_are_no_machine() -> None:
    with pytest.raises(UserError, match="no build of torch computes on all of these"):
        preset_machine("rtx4090+mi300x")


@pytest.mark.parametrize("name", ["0xh100", "rtx4090+", "+t4", "rtx4090+m1-16", "2x", "m1-15"])
def test_a_list_with_an_unknown_part_is_an_unknown_machine(name: str) -> None:
    with pytest.raises(UserError, match="there is no machine"):
        preset_machine(name)
