"""The GPUs that the estimates of speed know: memory, bandwidth, and rate of half-precision products.

Bandwidths are the vendors' figures. Rates are dense products of 16-bit numbers with float32 accumulation, which is what
torch computes. Each group names its source.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmctl.machine.apple import GIB, working_set_bytes
from llmctl.machine.detection import Gpu


@dataclass(frozen=True)
class Card:
    """A GPU model: its driver's name, CUDA capability, memory in GiB, bandwidth in GB/s, half-precision TFLOP/s."""

    name: str
    capability: tuple[int, int]
    memory_gib: float
    bandwidth_gb: float
    half_tflops: float
    kind: Literal["cuda", "rocm", "xpu"] = "cuda"
    shares_ram: bool = False


@dataclass(frozen=True)
class Chip:
    """A chip of Apple: name, bandwidth in GB/s, half-precision TFLOP/s of the GPU, memory sizes in GiB."""

    name: str
    bandwidth_gb: float
    half_tflops: float
    memory_gib: tuple[int, ...]


_PASCAL, _VOLTA, _TURING, _AMPERE, _ADA, _BLACKWELL = (6, 1), (7, 0), (7, 5), (8, 6), (8, 9), (12, 0)

CARDS = {
    # Pascal and Volta: data sheets of P100, P40 (its float16 is slow: the rate is that of float32), V100 and V100S.
    "p100": Card("Tesla P100-PCIE-16GB", (6, 0), 16, 732, 18.7),
    "p40": Card("Tesla P40", _PASCAL, 22.5, 346, 11.8),
    "gtx1080ti": Card("NVIDIA GeForce GTX 1080 Ti", _PASCAL, 11, 484, 11.3),
    "v100-16": Card("Tesla V100-SXM2-16GB", _VOLTA, 16, 900, 125),
    "v100-32": Card("Tesla V100-SXM2-32GB", _VOLTA, 32, 900, 125),
    "v100-pcie-16": Card("Tesla V100-PCIE-16GB", _VOLTA, 16, 900, 112),
    "v100-pcie-32": Card("Tesla V100-PCIE-32GB", _VOLTA, 32, 900, 112),
    "v100s": Card("Tesla V100S-PCIE-32GB", _VOLTA, 32, 1134, 130),
    # Turing: T4 data sheet; GeForce RTX: Turing whitepaper, tensor rates with FP32 accumulation; GTX 16 have no tensor
    # cores: twice the rate of float32 at boost.
    "t4": Card("Tesla T4", _TURING, 15, 320, 65),
    "gtx1660": Card("NVIDIA GeForce GTX 1660", _TURING, 6, 192, 10),
    "gtx1660super": Card("NVIDIA GeForce GTX 1660 SUPER", _TURING, 6, 336, 10),
    "gtx1660ti": Card("NVIDIA GeForce GTX 1660 Ti", _TURING, 6, 288, 11),
    "rtx2060": Card("NVIDIA GeForce RTX 2060", _TURING, 6, 336, 26),
    "rtx2070": Card("NVIDIA GeForce RTX 2070", _TURING, 8, 448, 30),
    "rtx2070super": Card("NVIDIA GeForce RTX 2070 SUPER", _TURING, 8, 448, 36),
    "rtx2080": Card("NVIDIA GeForce RTX 2080", _TURING, 8, 448, 40),
    "rtx2080super": Card("NVIDIA GeForce RTX 2080 SUPER", _TURING, 8, 496, 45),
    "rtx2080ti": Card("NVIDIA GeForce RTX 2080 Ti", _TURING, 11, 616, 54),
    # Ampere GeForce: GA102 whitepaper, tensor rates with FP32 accumulation, without sparsity. Laptop: twice the rate of
    # float32 at the highest boost of NVIDIA's comparison of laptop GPUs.
    "rtx3050": Card("NVIDIA GeForce RTX 3050", _AMPERE, 8, 224, 18),
    "rtx3060": Card("NVIDIA GeForce RTX 3060", _AMPERE, 12, 360, 25),
    "rtx3060ti": Card("NVIDIA GeForce RTX 3060 Ti", _AMPERE, 8, 448, 32),
    "rtx3070": Card("NVIDIA GeForce RTX 3070", _AMPERE, 8, 448, 41),
    "rtx3070ti": Card("NVIDIA GeForce RTX 3070 Ti", _AMPERE, 8, 608, 43),
    "rtx3080": Card("NVIDIA GeForce RTX 3080", _AMPERE, 10, 760, 60),
    "rtx3080-12": Card("NVIDIA GeForce RTX 3080", _AMPERE, 12, 912, 61),
    "rtx3080ti": Card("NVIDIA GeForce RTX 3080 Ti", _AMPERE, 12, 912, 68),
    "rtx3090": Card("NVIDIA GeForce RTX 3090", _AMPERE, 24, 936, 71),
    "rtx3090ti": Card("NVIDIA GeForce RTX 3090 Ti", _AMPERE, 24, 1008, 80),
    "rtx3060-laptop": Card("NVIDIA GeForce RTX 3060 Laptop GPU", _AMPERE, 6, 336, 26),
    "rtx3070-laptop": Card("NVIDIA GeForce RTX 3070 Laptop GPU", _AMPERE, 8, 448, 33),
    "rtx3080-laptop": Card("NVIDIA GeForce RTX 3080 Laptop GPU", _AMPERE, 16, 448, 42),
    "rtx3080ti-laptop": Card("NVIDIA GeForce RTX 3080 Ti Laptop GPU", _AMPERE, 16, 512, 47),
    # Ada GeForce: Ada whitepaper (as above) and, for laptops, NVIDIA's comparison of laptop GPUs (as above).
    "rtx4060": Card("NVIDIA GeForce RTX 4060", _ADA, 8, 272, 30),
    "rtx4060ti": Card("NVIDIA GeForce RTX 4060 Ti", _ADA, 16, 288, 44),
    "rtx4070": Card("NVIDIA GeForce RTX 4070", _ADA, 12, 504, 58),
    "rtx4070super": Card("NVIDIA GeForce RTX 4070 SUPER", _ADA, 12, 504, 71),
    "rtx4070ti": Card("NVIDIA GeForce RTX 4070 Ti", _ADA, 12, 504, 80),
    "rtx4070tisuper": Card("NVIDIA GeForce RTX 4070 Ti SUPER", _ADA, 16, 672, 88),
    "rtx4080": Card("NVIDIA GeForce RTX 4080", _ADA, 16, 717, 97),
    "rtx4080super": Card("NVIDIA GeForce RTX 4080 SUPER", _ADA, 16, 736, 104),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", _ADA, 24, 1008, 165),
    "rtx4060-laptop": Card("NVIDIA GeForce RTX 4060 Laptop GPU", _ADA, 8, 256, 29),
    "rtx4070-laptop": Card("NVIDIA GeForce RTX 4070 Laptop GPU", _ADA, 8, 256, 40),
    "rtx4080-laptop": Card("NVIDIA GeForce RTX 4080 Laptop GPU", _ADA, 12, 432, 67),
    "rtx4090-laptop": Card("NVIDIA GeForce RTX 4090 Laptop GPU", _ADA, 16, 576, 79),
    # Blackwell GeForce: RTX Blackwell whitepaper (as above) and NVIDIA's comparison of laptop GPUs (as above).
    "rtx5060": Card("NVIDIA GeForce RTX 5060", _BLACKWELL, 8, 448, 38),
    "rtx5060ti": Card("NVIDIA GeForce RTX 5060 Ti", _BLACKWELL, 16, 448, 47),
    "rtx5070": Card("NVIDIA GeForce RTX 5070", _BLACKWELL, 12, 672, 62),
    "rtx5070ti": Card("NVIDIA GeForce RTX 5070 Ti", _BLACKWELL, 16, 896, 88),
    "rtx5080": Card("NVIDIA GeForce RTX 5080", _BLACKWELL, 16, 960, 113),
    "rtx5090": Card("NVIDIA GeForce RTX 5090", _BLACKWELL, 32, 1792, 210),
    "rtx5070-laptop": Card("NVIDIA GeForce RTX 5070 Laptop GPU", _BLACKWELL, 8, 384, 30),
    "rtx5070ti-laptop": Card("NVIDIA GeForce RTX 5070 Ti Laptop GPU", _BLACKWELL, 12, 672, 45),
    "rtx5080-laptop": Card("NVIDIA GeForce RTX 5080 Laptop GPU", _BLACKWELL, 16, 896, 50),
    "rtx5090-laptop": Card("NVIDIA GeForce RTX 5090 Laptop GPU", _BLACKWELL, 24, 896, 64),
    # Workstations: data sheets of the RTX A series, RTX Ada and RTX PRO Blackwell, without sparsity.
    "a2000": Card("NVIDIA RTX A2000 12GB", _AMPERE, 12, 288, 32),
    "a4000": Card("NVIDIA RTX A4000", _AMPERE, 16, 448, 77),
    "a5000": Card("NVIDIA RTX A5000", _AMPERE, 24, 768, 111),
    "a6000": Card("NVIDIA RTX A6000", _AMPERE, 48, 768, 155),
    "rtx4000-ada": Card("NVIDIA RTX 4000 Ada Generation", _ADA, 20, 360, 107),
    "rtx5000-ada": Card("NVIDIA RTX 5000 Ada Generation", _ADA, 32, 576, 261),
    "rtx6000-ada": Card("NVIDIA RTX 6000 Ada Generation", _ADA, 48, 960, 364),
    "rtx-pro-6000": Card("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", _BLACKWELL, 96, 1792, 504),
    # Data centre: data sheets without sparsity; A10G from AWS's table of G5; B200's rate from the HGX data sheet.
    "l4": Card("NVIDIA L4", _ADA, 22.5, 300, 121),
    "a2": Card("NVIDIA A2", _AMPERE, 15, 200, 18),
    "a10": Card("NVIDIA A10", _AMPERE, 22.5, 600, 125),
    "a10g": Card("NVIDIA A10G", _AMPERE, 22.5, 600, 70),
    "a30": Card("NVIDIA A30", (8, 0), 24, 933, 165),
    "a40": Card("NVIDIA A40", _AMPERE, 45, 696, 150),
    "l40": Card("NVIDIA L40", _ADA, 45, 864, 181),
    "l40s": Card("NVIDIA L40S", _ADA, 45, 864, 362),
    "a100-40": Card("NVIDIA A100-SXM4-40GB", (8, 0), 40, 1555, 312),
    "a100-80": Card("NVIDIA A100-SXM4-80GB", (8, 0), 80, 2039, 312),
    "a100-pcie-40": Card("NVIDIA A100-PCIE-40GB", (8, 0), 40, 1555, 312),
    "a100-pcie-80": Card("NVIDIA A100 80GB PCIe", (8, 0), 80, 1935, 312),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 80, 3350, 989),
    "h100-pcie": Card("NVIDIA H100 PCIe", (9, 0), 80, 2039, 756),
    "h100-nvl": Card("NVIDIA H100 NVL", (9, 0), 94, 3938, 835),
    "h20": Card("NVIDIA H20", (9, 0), 96, 4000, 148),
    "h200": Card("NVIDIA H200", (9, 0), 141, 4800, 989),
    "h200-nvl": Card("NVIDIA H200 NVL", (9, 0), 141, 4800, 835),
    "gh200": Card("NVIDIA GH200 480GB", (9, 0), 96, 4000, 989),
    "b200": Card("NVIDIA B200", (10, 0), 180, 7700, 2250),
    # NVIDIA's computers whose memory is the RAM: data sheets of DGX Spark (an eighth of the rate in sparse FP4) and of
    # Jetson AGX Orin (a quarter of the rate in sparse INT8).
    "gb10": Card("NVIDIA GB10", (12, 1), 119, 273, 125, shares_ram=True),
    "orin": Card("Orin", (8, 7), 61, 205, 42, shares_ram=True),
    # AMD: data sheets, dense matrix rates in FP16; capability is the gfx version. MI250X: one of its two dies.
    "mi210": Card("AMD Instinct MI210", (9, 0), 64, 1638, 181, "rocm"),
    "mi250x": Card("AMD Instinct MI250X", (9, 0), 64, 1638, 192, "rocm"),
    "mi300x": Card("AMD Instinct MI300X", (9, 4), 192, 5300, 1307, "rocm"),
    "mi325x": Card("AMD Instinct MI325X", (9, 4), 256, 6000, 1307, "rocm"),
    "mi355x": Card("AMD Instinct MI355X", (9, 5), 288, 8000, 2516, "rocm"),
    "rx6900xt": Card("AMD Radeon RX 6900 XT", (10, 3), 16, 512, 46, "rocm"),
    "rx7900xt": Card("AMD Radeon RX 7900 XT", (11, 0), 20, 800, 103, "rocm"),
    "rx7900xtx": Card("AMD Radeon RX 7900 XTX", (11, 0), 24, 960, 123, "rocm"),
    "rx9070xt": Card("AMD Radeon RX 9070 XT", (12, 0), 16, 645, 195, "rocm"),
    "w7900": Card("AMD Radeon PRO W7900", (11, 0), 48, 864, 123, "rocm"),
    "strix-halo": Card("AMD Radeon 8060S Graphics", (11, 5), 96, 256, 59, "rocm", shares_ram=True),
    # Intel: data sheets; half of the rate in INT8 with XMX.
    "arc-a750": Card("Intel(R) Arc(TM) A750 Graphics", (0, 0), 8, 512, 115, "xpu"),
    "arc-a770": Card("Intel(R) Arc(TM) A770 Graphics", (0, 0), 16, 560, 131, "xpu"),
    "arc-b570": Card("Intel(R) Arc(TM) B570 Graphics", (0, 0), 10, 380, 101, "xpu"),
    "arc-b580": Card("Intel(R) Arc(TM) B580 Graphics", (0, 0), 12, 456, 117, "xpu"),
    "arc-pro-b50": Card("Intel(R) Arc(TM) Pro B50 Graphics", (0, 0), 16, 224, 85, "xpu"),
    "arc-pro-b60": Card("Intel(R) Arc(TM) Pro B60 Graphics", (0, 0), 24, 456, 98, "xpu"),
}
# Names without a size or a form: the one that is most common.
ALIASES = {"v100": "v100-16", "a100": "a100-80", "h100-sxm": "h100", "b580": "arc-b580", "1660": "gtx1660"}

# Apple's technical specifications; rates: 256 operations for each core and clock, in float16 as in float32
# (https://github.com/philipturner/metal-benchmarks). The smaller Max chips have fewer channels to the memory, and are
# sold with other sizes of it.
CHIPS = (
    Chip("M1", 68, 2.6, (8, 16)),
    Chip("M1 Pro", 200, 5.3, (16, 32)),
    Chip("M1 Max", 400, 10.6, (32, 64)),
    Chip("M1 Ultra", 800, 21, (64, 128)),
    Chip("M2", 100, 3.6, (8, 16, 24)),
    Chip("M2 Pro", 200, 6.8, (16, 32)),
    Chip("M2 Max", 400, 13.6, (32, 64, 96)),
    Chip("M2 Ultra", 800, 27, (64, 128, 192)),
    Chip("M3", 100, 4.1, (8, 16, 24)),
    Chip("M3 Pro", 150, 7.4, (18, 36)),
    Chip("M3 Max", 300, 12, (36, 96)),
    Chip("M3 Max", 400, 16, (48, 64, 128)),
    Chip("M3 Ultra", 819, 28, (96, 256, 512)),
    Chip("M4", 120, 4.3, (16, 24, 32)),
    Chip("M4 Pro", 273, 8.6, (24, 48, 64)),
    Chip("M4 Max", 410, 14, (36,)),
    Chip("M4 Max", 546, 17, (48, 64, 128)),
    Chip("M5", 153, 4.2, (16, 24, 32)),
    Chip("M5 Pro", 307, 8.3, (24, 48, 64)),
    Chip("M5 Max", 460, 13, (36,)),
    Chip("M5 Max", 614, 17, (48, 64, 128)),
)
# Words that make another model of a name: an RTX 4090 Laptop GPU has little in common with an RTX 4090.
_VARIANTS = {"ti", "super", "laptop", "max-q", "ada", "blackwell", "server", "xt", "xtx", "gre", "pro", "d"}
_FORMS = {"pcie", "nvl", "sxm2", "sxm4"}
_BRANDS = {"nvidia", "geforce", "tesla", "amd", "radeon", "instinct", "intel", "arc", "graphics", "gpu"}


@dataclass(frozen=True)
class GpuRates:
    """Bytes per second between a GPU and its memory, and half-precision operations per second."""

    bandwidth: float
    operations: float


def rates_of(gpu: Gpu) -> GpuRates | None:
    """Return the rates of a GPU; None if its model is not known."""
    if gpu.kind == "mps":
        chip = chip_of(gpu)
        return GpuRates(chip.bandwidth_gb * 1e9, chip.half_tflops * 1e12) if chip else None
    card = card_of(gpu)
    if card is None:
        return None
    # A slice has its share of the memory's channels, and 1 to 7 of the 7 parts that compute: "MIG 1g.10gb".
    profile = re.search(r"\bMIG (?:\d+c\.)?(\d)g\.(\d+)gb", gpu.name)
    memory, computing = (int(profile[2]) / card.memory_gib, int(profile[1]) / 7) if profile else (1.0, 1.0)
    return GpuRates(card.bandwidth_gb * 1e9 * memory, card.half_tflops * 1e12 * computing)


def card_of(gpu: Gpu) -> Card | None:
    """Return the card of a GPU by its driver's name: the same model, variant and form; of several, the closest in size.

    A name without a form, such as `NVIDIA A100`, is that of any form.
    """
    words = set(_words(gpu.name))
    models = [
        card
        for card in CARDS.values()
        if card.kind == gpu.kind
        and _model(card.name) == _model(gpu.name)
        and _VARIANTS.intersection(_words(card.name)) == words & _VARIANTS
    ]
    same_form = [card for card in models if _FORMS.intersection(_words(card.name)) == words & _FORMS]
    candidates = same_form or ([] if words & _FORMS else models)
    return min(candidates, key=lambda card: abs(card.memory_gib * GIB - gpu.total_bytes), default=None)


def chip_of(gpu: Gpu) -> Chip | None:
    """Return the chip of one of Apple's GPUs; if two have the same name, the one that is sold with so much memory."""
    named = [chip for chip in CHIPS if f"Apple {chip.name}" == gpu.name]
    return min(named, key=lambda chip: _distance(chip.memory_gib, gpu.total_bytes), default=None)


def _distance(sizes_gib: Sequence[int], working_set: int) -> int:
    return min(abs(working_set_bytes(size * GIB) - working_set) for size in sizes_gib)


def _words(name: str) -> list[str]:
    plain = re.sub(r"\((?:r|tm)\)", "", name.lower())
    return re.findall(r"max-q|[\w.]+", plain)


def _model(name: str) -> str:
    """Return the word that names the model, the first with a digit, such as `4090` or `mi300x`; else the first word."""
    words = [word for word in _words(name) if word not in _BRANDS]
    return next((word for word in words if re.search(r"\d", word)), words[0] if words else "")
