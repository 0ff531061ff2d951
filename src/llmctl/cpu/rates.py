"""The measured rates of the compiled kernels, without torch: bytes of weights and operations per second.

Another program takes processors away from some of the runs. So the runs are short, with pauses after which the system
starts a thread at once; the kinds of weights take turns; and only undisturbed runs count: those in which every thread
computed all the time, which the processor time shows.
"""

import ctypes
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmctl.cpu.operations import Kernels
from llmctl.cpu.packing import native_bytes

KINDS = ("float32", "bfloat16", "8-bit", "4-bit")
_INPUTS = 2048
_DECODE_BYTES = 32 << 20  # of one run: long compared with the start of a thread, short compared with a time slice
_PREFILL_ROWS, _PREFILL_OUTPUTS = 128, 1024
_LARGEST_BUFFER = 512 << 20
_BUDGET_SECONDS = 0.8  # for decoding and for prefill each, if other programs disturb
_PAUSE_SECONDS = 0.001
_ENOUGH_RUNS = 10
_UNDISTURBED_SHARE = 0.85  # of the threads' time; the rest is their start
_BYTE = 0x3C  # 0x3c3c and 0x3c3c3c3c are ordinary numbers in every dtype


@dataclass(frozen=True)
class KernelRates:
    """The fastest runs, by kind of weights.

    Attributes:
        decode: Bytes of weights per second with one row of inputs.
        prefill: Operations per second with many rows; a multiplication and an addition count as two.
        is_disturbed: True if other programs disturbed all runs of a kind, whose rate is then an estimate.
    """

    decode: Mapping[str, float]
    prefill: Mapping[str, float]
    is_disturbed: bool = False


@dataclass
class Runs:
    """The runs of one kind of weights.

    Attributes:
        threads: Number of threads.
        shares_memory: True if the threads compete for memory, so that one alone reads more than its part.
        undisturbed: Seconds of the runs in which every thread computed all the time.
        disturbed: Estimated seconds that the other runs would have taken.
    """

    threads: int
    shares_memory: bool
    undisturbed: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)

    def add(self, *, seconds: float, processor_seconds: float) -> None:
        """Add a run with the processor time that all its threads used; infinity if that is not known."""
        computing = processor_seconds / self.threads
        if computing >= _UNDISTURBED_SHARE * seconds:
            self.undisturbed.append(seconds)
        else:
            self.disturbed.append(math.sqrt(seconds * computing) if self.shares_memory else computing)

    def best(self) -> float:
        """Return the seconds of a run without other programs."""
        return min(self.undisturbed or self.disturbed)


def weight_bytes(kind: str, outputs: int, inputs: int = _INPUTS) -> int:
    """Return the bytes of a matrix [outputs, inputs] of one of `KINDS`."""
    if kind in ("8-bit", "4-bit"):
        return native_bytes(outputs, inputs, int(kind[0]))
    return outputs * inputs * (4 if kind == "float32" else 2)


def measure_rates(kernels: Kernels, *, threads: int, cache_bytes: int, free_bytes: int) -> KernelRates:
    """Measure the kernels, for half a second on a quiet computer and for at most about two.

    Args:
        cache_bytes: Size of the processor's largest cache, where the weights must not stay.
        free_bytes: Free RAM; at most an eighth of it is used.
    """
    wanted = max(6 * _DECODE_BYTES, min(2 * cache_bytes, _LARGEST_BUFFER))
    weights = _filled(max(min(wanted, free_bytes // 8), weight_bytes("float32", _PREFILL_OUTPUTS)))
    narrow = {kind: _rows_within(kind, min(_DECODE_BYTES, len(weights))) for kind in KINDS}
    wide = dict.fromkeys(KINDS, _PREFILL_OUTPUTS)
    decode = _measure(kernels, weights, narrow, rows=1, threads=threads)
    prefill = _measure(kernels, weights, wide, rows=_PREFILL_ROWS, threads=threads)
    operations = 2 * _PREFILL_ROWS * _PREFILL_OUTPUTS * _INPUTS
    return KernelRates(
        decode={kind: weight_bytes(kind, narrow[kind]) / runs.best() for kind, runs in decode.items()},
        prefill={kind: operations / runs.best() for kind, runs in prefill.items()},
        is_disturbed=not all(runs.undisturbed for runs in (*decode.values(), *prefill.values())),
    )


def _rows_within(kind: str, size_bytes: int) -> int:
    """Return the outputs of a matrix of at most `size_bytes`, in whole groups of 16."""
    return size_bytes // weight_bytes(kind, 16) * 16


def _filled(size_bytes: int) -> "ctypes.Array[ctypes.c_char]":
    """Return memory of its own, not the page of zeros that the system lends."""
    buffer = ctypes.create_string_buffer(size_bytes)
    ctypes.memset(buffer, _BYTE, size_bytes)
    return buffer


def _measure(
    kernels: Kernels, weights: "ctypes.Array[ctypes.c_char]", outputs: Mapping[str, int], *, rows: int, threads: int
) -> Mapping[str, Runs]:
    """Run every kind in turn until each had enough undisturbed runs. Each reads the next weights."""
    x, y = _filled(4 * rows * _INPUTS), _filled(4 * rows * max(outputs.values()))
    runs = {kind: Runs(threads, shares_memory=rows == 1) for kind in outputs}
    is_clock_fine = time.get_clock_info("process_time").resolution < 1e-5  # not on Windows
    offset, ends = 0, time.perf_counter() + _BUDGET_SECONDS
    while any(len(one.undisturbed) < _ENOUGH_RUNS for one in runs.values()):
        for kind, count in outputs.items():
            size = weight_bytes(kind, count)
            offset = offset if offset + size <= len(weights) else 0
            place = ctypes.addressof(weights) + offset
            time.sleep(_PAUSE_SECONDS)
            processor, began = time.process_time(), time.perf_counter()
            kernels.multiply_addresses(kind, x, place, y, rows=rows, inputs=_INPUTS, outputs=count, threads=threads)
            seconds, processor = time.perf_counter() - began, time.process_time() - processor
            runs[kind].add(seconds=seconds, processor_seconds=processor if is_clock_fine else math.inf)
            offset += size // 64 * 64
        if time.perf_counter() > ends:
            break
    return runs
