"""Hypothetical machines: cards and computers by name, and machines described in a YAML file.

Bandwidths and FLOP rates are the vendors' figures (data sheets of the named products): bytes per second between the GPU
and its memory, and dense half-precision products with float32 accumulation.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl import yaml_reader
from llmctl.errors import UserError
from llmctl.machine.detection import Gpu, Machine
from llmctl.quant.checkpoint_formats import packages_of_formats
from llmctl.text_files import read_text
from llmctl.units import parse_bytes

GIB = 2**30
_KERNELS = (
    ("amx_bf16", "amxbf16"), ("avx512_bf16", "avx512bf16"), ("avx512_vnni", "avx512vnni"), ("avx512f", "avx512vl"),
    ("avx_vnni", "avxvnni"), ("avx2", "avx2"), ("asimd", "neon"),
)  # fmt: skip
# Hypothetical machines have what a model needs: the tested versions, and the packages of pre-quantised formats.
_PACKAGES = {
    **{package.name: package.minimum or "1" for package in packages_of_formats()},
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "flash_attn": "2.8.3",
}


@dataclass(frozen=True)
class Card:
    """A GPU model: name, CUDA capability, memory in GiB, bandwidth in GB/s, half-precision TFLOP/s."""

    name: str
    capability: tuple[int, int]
    memory_gib: float
    bandwidth_gb: float
    half_tflops: float


CARDS = {
    "t4": Card("Tesla T4", (7, 5), 15, 320, 65),
    "v100-16": Card("Tesla V100-SXM2-16GB", (7, 0), 16, 900, 112),
    "v100-32": Card("Tesla V100-SXM2-32GB", (7, 0), 32, 900, 112),
    "rtx3060": Card("NVIDIA GeForce RTX 3060", (8, 6), 12, 360, 25),
    "rtx3090": Card("NVIDIA GeForce RTX 3090", (8, 6), 24, 936, 71),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 24, 1008, 165),
    "l4": Card("NVIDIA L4", (8, 9), 22.5, 300, 121),
    "a10": Card("NVIDIA A10G", (8, 6), 22.5, 600, 70),
    "l40s": Card("NVIDIA L40S", (8, 9), 45, 864, 362),
    "a100-40": Card("NVIDIA A100-SXM4-40GB", (8, 0), 40, 1555, 312),
    "a100-80": Card("NVIDIA A100-SXM4-80GB", (8, 0), 80, 2039, 312),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 80, 3350, 989),
    "h200": Card("NVIDIA H200", (9, 0), 141, 4800, 989),
}
# Apple computers: memory in GiB, bandwidth in GB/s, half-precision TFLOP/s of the GPU.
MACS = {"m2-24": (24, 100, 7), "m3-max-36": (36, 300, 28), "m3-max-128": (128, 400, 33), "m4-pro-48": (48, 273, 17)}


def card_of(gpu: Gpu) -> Card | None:
    """Return the card of a GPU by its driver's name; if several match, the one with the closest memory size."""
    words = set(_words(gpu.name))
    full_matches = [card for card in CARDS.values() if set(_words(card.name)) - {"nvidia", "geforce", "tesla"} <= words]
    model_matches = [card for card in CARDS.values() if _words(card.name)[1:2] and _model_word(card.name) in words]
    candidates = full_matches or model_matches
    return min(candidates, key=lambda card: abs(card.memory_gib * GIB - gpu.total_bytes), default=None)


def _words(name: str) -> list[str]:
    return re.split(r"[\s-]+", name.lower())


def _model_word(name: str) -> str:
    return next((word for word in _words(name) if re.search(r"\d", word)), "")


def preset_machine(name: str) -> Machine:
    """Return a machine by name: `h100`, `2xh100`, `m3-max-36`, or the path of a YAML file.

    Raises:
        UserError: there is no such name or file, or the file does not describe a machine.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([\w.-]+)", name)
    if match and match[2] in CARDS:
        return gpu_machine(CARDS[match[2]], int(match[1] or 1))
    if name in MACS:
        memory = MACS[name][0] * GIB
        gpu = Gpu(0, f"Apple {name}", (0, 0), memory, int(memory * 0.75), kind="mps", shares_ram=True)
        packages = {k: v for k, v in _PACKAGES.items() if k != "flash_attn"}
        return Machine(
            "Darwin", "arm64", memory, int(memory * 0.75), 8, gpus=(gpu,), packages=packages, is_hypothetical=True
        )
    if Path(name).is_file():
        return _from_file(Path(name))
    raise UserError(
        f"there is no machine {name!r}", hint=f"known: {', '.join((*CARDS, *MACS))}; 2xh100 for two; or a YAML file"
    )


def gpu_machine(card: Card, count: int, *, ram_gib: float | None = None) -> Machine:
    """Return a server with `count` cards, 0.5 GiB of each in use, and twice as much RAM as GPU memory."""
    ram = int((ram_gib or max(2 * count * card.memory_gib, 32)) * GIB)
    memory = int(card.memory_gib * GIB)
    gpus = tuple(Gpu(n, card.name, card.capability, memory, memory - GIB // 2) for n in range(count))
    return Machine(
        "Linux",
        "x86_64",
        ram,
        int(ram * 0.9),
        16,
        frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}),
        gpus,
        _PACKAGES,
        "13.0",
        compiler="g++",
        is_hypothetical=True,
    )


def _kernels(features: frozenset[str]) -> str:
    """Return the instruction set of llmctl's kernels on a processor with these features, as native/isa_*.cpp choose."""
    chosen = (isa for feature, isa in _KERNELS if feature in features)
    return next(chosen, "portable")


def _from_file(path: Path) -> Machine:
    """Read a machine such as `{gpus: [rtx3090, rtx3090], ram: 64GiB}` or `{cores: 8, ram: 32GiB, features: [avx2]}`."""

    try:
        node = yaml_reader.parse(read_text(path))
        content: Any = {} if node is None else yaml_reader.read(node, Any, line=1)
        names = list(content.get("gpus", []))
        ram = parse_bytes(content.get("ram", "32GiB"))
        cards = [CARDS[name] for name in names]
        features = frozenset(content.get("features", ["avx2"]))
        cores = int(content.get("cores", 8))
        unknown = set(content) - {"gpus", "ram", "features", "cores"}
    except KeyError as error:
        raise UserError(f"{path}: there is no card {error}", hint=f"known: {', '.join(CARDS)}") from error
    except (yaml_reader.ValueProblem, ValueError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{path} does not describe a machine: {error}", hint="gpus: [rtx4090], ram: 64GiB") from error
    if unknown:
        raise UserError(f"{path}: unknown keys {', '.join(sorted(unknown))}", hint="known: gpus, ram, features, cores")
    gpus = tuple(replace(gpu_machine(card, 1).gpus[0], index=n) for n, card in enumerate(cards))
    return Machine(
        "Linux",
        "x86_64",
        ram,
        int(ram * 0.9),
        cores,
        features,
        gpus,
        _PACKAGES if gpus else {k: v for k, v in _PACKAGES.items() if k != "flash_attn"},
        "13.0" if gpus else None,
        kernels=_kernels(features),
        compiler="g++",
        is_hypothetical=True,
    )
