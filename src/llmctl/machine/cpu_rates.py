"""The measured speed of this computer's processor and memory, kept on disk for each machine.

It is kept because a measurement takes over a second, and because other programs can disturb it.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmctl.cpu import kernels
from llmctl.cpu.rates import KINDS, measure_rates
from llmctl.machine.detection import measure_ram_bandwidth, read_cpu_name, read_free_ram_bytes
from llmctl.machine.threads import computing_threads
from llmctl.paths import state_dir, write_atomically
from llmctl.platform_support import read_system_file

_CACHE_SIZE_FILE = "/sys/devices/system/cpu/cpu0/cache/index3/size"
_PHASES = ("decode", "prefill")
_CACHE_BYTES = 32 << 20  # where the system does not tell


@dataclass(frozen=True)
class CpuRates:
    """The measured rates of a computer.

    Attributes:
        bandwidth: Bytes per second of the RAM: what llmctl's kernels read, or without them, what a copy moves.
        decode: Bytes per second that llmctl's kernels read while decoding, by kind of weights: `float32`, `bfloat16`,
            `8-bit`, `4-bit`. Empty without the kernels, as is `prefill`.
        prefill: Operations per second of the kernels while they read a prompt, by kind of weights.
        measured: Date of the measurement, as in `2026-01-31`.
        is_disturbed: True if other programs disturbed it throughout.
    """

    bandwidth: float
    decode: Mapping[str, float] = field(default_factory=dict)
    prefill: Mapping[str, float] = field(default_factory=dict)
    measured: str = ""
    is_disturbed: bool = False


def read_cpu_rates(*, again: bool = False) -> CpuRates:
    """Return the rates kept for this computer; measure them if there are none, if these were disturbed, or `again`.

    A state folder that cannot be read or written only means that they are measured each time.
    """
    key, kept = _machine_key(), _read_kept()
    known = None if again else _parsed(kept.get(key))
    rates = known
    if rates is None or rates.is_disturbed:
        rates = _measure()
        if rates.is_disturbed and known is not None:
            rates = _faster(known, rates)
        with suppress(OSError):
            write_atomically(_file(), json.dumps({**kept, key: asdict(rates)}, indent=1))
    return rates


def _machine_key() -> str:
    """Return what the rates depend on, so that several computers can share a state folder."""
    loaded = kernels.load()
    used = f"{loaded.isa} {kernels.build_key()}" if loaded is not None else "no kernels"
    return f"{read_cpu_name() or 'unknown processor'}, {computing_threads()} threads, {used}"


def _measure() -> CpuRates:
    loaded, threads = kernels.load(), computing_threads()
    today = datetime.now(UTC).date().isoformat()
    if loaded is None:
        return CpuRates(measure_ram_bandwidth(threads=threads), measured=today)
    rates = measure_rates(loaded, threads=threads, cache_bytes=_largest_cache_bytes(), free_bytes=read_free_ram_bytes())
    return CpuRates(max(rates.decode.values()), rates.decode, rates.prefill, today, rates.is_disturbed)


def _faster(one: CpuRates, other: CpuRates) -> CpuRates:
    """Return the faster rates of two disturbed measurements: other programs only make them slower."""
    decode, prefill = (
        {kind: max(rate, theirs.get(kind, rate)) for kind, rate in ours.items()}
        for ours, theirs in ((one.decode, other.decode), (one.prefill, other.prefill))
    )
    return CpuRates(max(one.bandwidth, other.bandwidth), decode, prefill, other.measured, is_disturbed=True)


def _largest_cache_bytes() -> int:
    match = re.fullmatch(r"(\d+)K", read_system_file(_CACHE_SIZE_FILE).strip())
    return int(match[1]) << 10 if match else _CACHE_BYTES


def _file() -> Path:
    return state_dir() / "cpu_rates.json"


def _read_kept() -> dict[str, Any]:
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _parsed(body: Any) -> CpuRates | None:
    """Return kept rates, or None if the file has been damaged."""
    try:
        decode, prefill = ({kind: float(body[phase][kind]) for kind in KINDS if body[phase]} for phase in _PHASES)
        rates = CpuRates(float(body["bandwidth"]), decode, prefill, str(body["measured"]), bool(body["is_disturbed"]))
    except (KeyError, TypeError, ValueError):
        return None
    figures = (rates.bandwidth, *rates.decode.values(), *rates.prefill.values())
    return rates if all(0 < figure < float("inf") for figure in figures) else None
