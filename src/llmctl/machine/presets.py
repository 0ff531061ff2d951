"""Hypothetical machines: cards and computers by name, and machines described in a YAML file."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl import yaml_reader
from llmctl.errors import UserError
from llmctl.machine.apple import GIB, working_set_bytes
from llmctl.machine.cards import ALIASES, CARDS, CHIPS, Card
from llmctl.machine.detection import Gpu, Machine
from llmctl.quant.checkpoint_formats import packages_of_formats
from llmctl.text_files import read_text
from llmctl.units import parse_bytes

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


def preset_machine(name: str) -> Machine:
    """Return a machine by name: `h100`, `2xh100`, `rtx4090+gtx1660`, `m3-max-36`, or the path of a YAML file.

    Raises:
        UserError: there is no such name or file, or the file does not describe a machine.
    """
    cards = _cards(name)
    if cards:
        return gpu_machine(cards)
    if name in _macs():
        return _macs()[name]
    if Path(name).is_file():
        return _from_file(Path(name))
    macs = "Macs by chip and memory, such as m1-16 and m4-max-64"
    several = "several cards as 2xh100 or rtx4090+gtx1660"
    raise UserError(f"there is no machine {name!r}", hint=f"known: {', '.join(CARDS)}; {macs}; {several}; a YAML file")


def _cards(name: str) -> list[Card]:
    """Return the cards of a list such as `2xrtx3090+t4`; none if a part of it is no card."""
    cards: list[Card] = []
    for part in name.split("+"):
        match = re.fullmatch(r"(?:([1-9]\d?)x)?([\w.-]+)", part)
        card = CARDS.get(ALIASES.get(match[2], match[2])) if match else None
        if match is None or card is None:
            return []
        cards += [card] * int(match[1] or 1)
    return cards


def gpu_machine(cards: Sequence[Card], *, ram_gib: float | None = None) -> Machine:
    """Return a server with these cards, 0.5 GiB of each in use, and twice as much RAM as GPU memory.

    The memory of a card without its own is the RAM.

    Raises:
        UserError: the cards are of several vendors.
    """
    if len({card.kind for card in cards}) > 1:
        names = ", ".join(card.name for card in cards)
        raise UserError(f"no build of torch computes on all of these: {names}", hint="choose cards of one vendor")
    gpu_gib = sum(card.memory_gib for card in cards)
    shares_ram = any(card.shares_ram for card in cards)
    ram = int((ram_gib or (gpu_gib if shares_ram else max(2 * gpu_gib, 32))) * GIB)
    is_cuda, is_arm = cards[0].kind == "cuda", cards[0].kind == "cuda" and shares_ram
    x86 = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"})
    features = frozenset({"asimd", "bf16"}) if is_arm else x86
    return Machine(
        "Linux",
        "aarch64" if is_arm else "x86_64",
        ram,
        int(ram * 0.9),
        16,
        features,
        tuple(_gpu(number, card, ram_bytes=ram) for number, card in enumerate(cards)),
        _PACKAGES if is_cuda else _without_flash(),
        "13.0" if is_cuda else None,
        compiler="g++",
        kernels=_kernels(features),
        is_hypothetical=True,
    )


def _gpu(index: int, card: Card, *, ram_bytes: int) -> Gpu:
    memory = int(card.memory_gib * GIB)
    free = min(memory, int(ram_bytes * 0.9)) if card.shares_ram else memory - GIB // 2
    return Gpu(index, card.name, card.capability, memory, free, card.kind, shares_ram=card.shares_ram)


def _macs() -> dict[str, Machine]:
    """Return Apple's computers by name, such as `m1-16` and `m4-max-64`."""
    return {
        f"{chip.name.lower().replace(' ', '-')}-{size}": _mac(f"Apple {chip.name}", size * GIB)
        for chip in CHIPS
        for size in chip.memory_gib
    }


def _mac(name: str, memory: int) -> Machine:
    """Return a Mac with a quarter of its memory in use."""
    available, usable = int(memory * 0.75), working_set_bytes(memory)
    gpu = Gpu(0, name, (0, 0), usable, min(usable, available), kind="mps", shares_ram=True)
    return Machine(
        "Darwin",
        "arm64",
        memory,
        available,
        8,
        gpus=(gpu,),
        packages=_without_flash(),
        kernels="neon",
        is_hypothetical=True,
        macos=(15, 0),
    )


def _without_flash() -> dict[str, str]:
    return {name: version for name, version in _PACKAGES.items() if name != "flash_attn"}


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
        cards = [CARDS[ALIASES.get(name, name)] for name in names]
        features = frozenset(content.get("features", ["avx2"]))
        cores = int(content.get("cores", 8))
        unknown = set(content) - {"gpus", "ram", "features", "cores"}
    except KeyError as error:
        raise UserError(f"{path}: there is no card {error}", hint=f"known: {', '.join(CARDS)}") from error
    except (yaml_reader.ValueProblem, ValueError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{path} does not describe a machine: {error}", hint="gpus: [rtx4090], ram: 64GiB") from error
    if unknown:
        raise UserError(f"{path}: unknown keys {', '.join(sorted(unknown))}", hint="known: gpus, ram, features, cores")
    if cards:
        machine = gpu_machine(cards, ram_gib=ram / GIB)
        return replace(machine, physical_cores=cores, cpu_features=features, kernels=_kernels(features))
    return Machine(
        "Linux",
        "x86_64",
        ram,
        int(ram * 0.9),
        cores,
        features,
        packages=_without_flash(),
        kernels=_kernels(features),
        compiler="g++",
        is_hypothetical=True,
    )
