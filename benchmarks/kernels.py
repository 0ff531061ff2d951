"""Speed of the CPU kernels compared with torch's, as a share of the memory bandwidth.

    .venv/bin/python benchmarks/kernels.py [--isa NAME …] [--seconds 0.3] [--one-thread] [--json FILE]

One row of x is a decoding step: nearly all the time is spent reading the weights, so the result is in GB/s and compared
with the memory bandwidth. Many rows are a prompt, and the result is in GFLOP/s. Each call uses the next of several
copies of the weights, which together are larger than the caches. The kernels take turns, so that other load on the
machine slows them equally. Each line shows the speed of the median call, the speed of the fastest call (the best
estimate for an idle machine), and the load average. On a machine that is never idle, use --one-thread: it counts the
CPU time of one thread, without the time spent waiting for a core.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import llmctl.cpu.kernels
from llmctl.cpu.kernels import Kernels

SHAPES = ((8192, 2048), (2048, 8192), (2048, 2048), (128256, 2048))
PROMPTS = (16, 64, 256)
COLD_BYTES = 200_000_000  # total size of the copies of a 16-bit weight
CLOCK = {"now": time.perf_counter}
Candidates = dict[str, tuple[Callable[[int, torch.Tensor], Any], float, torch.dtype]]


def print_line(line: str) -> None:
    """Print a line without buffering."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def time_calls(calls: dict[str, Callable[[int], Any]], copies: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Return the median and the shortest time of each call. Every round runs each call once, with the next copy."""
    durations: dict[str, list[float]] = {name: [] for name in calls}
    now = CLOCK["now"]
    end, turn = now() + seconds * len(calls), 0
    while now() < end or turn < max(5, copies):
        for name, call in calls.items():
            began = now()
            call(turn % copies)
            durations[name].append(now() - began)
        turn += 1
    return {name: (statistics.median(times), min(times)) for name, times in durations.items()}


def memory_bandwidth() -> float:
    """Return the memory bandwidth of all threads in bytes per second, from the fastest summation of a part of 1 GB."""
    parts = torch.ones(1 << 28).split(1 << 24)
    return parts[0].nbytes / time_calls({"sum": lambda i: parts[i].sum()}, len(parts), 2)["sum"][1]


def torch_candidates(weights: list[torch.Tensor]) -> Candidates:
    """Return torch's kernels: name -> (function of the copy's index and x, bytes per weight, type of x)."""
    n, k = weights[0].shape
    candidates: Candidates = {
        "torch bf16": (lambda i, x: torch.nn.functional.linear(x, weights[i]), 2, torch.bfloat16),
    }
    if n < 100_000:
        wide = [w.float() for w in weights]
        candidates["torch fp32"] = (lambda i, x: torch.nn.functional.linear(x, wide[i]), 4, torch.float32)
    codes = [torch.randint(-127, 127, (n, k), dtype=torch.int8) for _ in weights]
    row_scales = torch.rand(n, dtype=torch.bfloat16)
    candidates["torch int8"] = (lambda i, x: torch._weight_int8pack_mm(x, codes[i], row_scales), 1, torch.bfloat16)
    four = [
        torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 15, (n, k), dtype=torch.int32), 1)
        for _ in weights
    ]
    groups = torch.rand(k // 32, n, 2, dtype=torch.bfloat16)
    mm = torch.ops.aten._weight_int4pack_mm_for_cpu
    candidates["torch int4"] = (lambda i, x: mm(x, four[i], 32, groups), 0.5 + 4 / 32, torch.bfloat16)
    return candidates


def llmctl_candidates(kernels: Kernels, weights: list[torch.Tensor], isas: list[str]) -> Candidates:
    """Return llmctl's kernels for the given instruction sets."""
    n, k = weights[0].shape
    q4, q8 = [kernels.quantize_q4(w) for w in weights], [kernels.quantize_q8(w) for w in weights]
    candidates: Candidates = {}
    for isa in isas:

        def with_isa(call: Callable[[int, torch.Tensor], Any], isa: str = isa) -> Callable[[int, torch.Tensor], Any]:
            def call_with_isa(i: int, x: torch.Tensor) -> Any:
                kernels.use(isa)
                return call(i, x)

            return call_with_isa

        candidates[f"{isa} q4"] = (with_isa(lambda i, x: kernels.linear_q4(x, *q4[i], n, k)), 4.5 / 8, torch.bfloat16)
        candidates[f"{isa} q8"] = (with_isa(lambda i, x: kernels.linear_q8(x, *q8[i], n, k)), 8.5 / 8, torch.bfloat16)
        candidates[f"{isa} bf16"] = (with_isa(lambda i, x: kernels.linear(x, weights[i])), 2, torch.bfloat16)
        candidates[f"{isa} fp32 x bf16"] = (with_isa(lambda i, x: kernels.linear(x, weights[i])), 2, torch.float32)
    return candidates


def measure(kernels: Kernels, isas: list[str], seconds: float) -> list[dict[str, Any]]:
    """Measure every shape with every number of rows, and print each result at once."""
    bandwidth = memory_bandwidth()
    print_line(f"{torch.get_num_threads()} threads, memory {bandwidth / 1e9:.1f} GB/s, load {os.getloadavg()[0]:.1f}")
    rows = []
    for n, k in SHAPES:
        copies = max(1, COLD_BYTES // (2 * n * k))
        weights = [torch.randn(n, k, dtype=torch.bfloat16) for _ in range(copies)]
        candidates = torch_candidates(weights) | llmctl_candidates(kernels, weights, isas)
        for tokens in (1, *(PROMPTS if n < 100_000 else ())):
            calls = {}
            for name, (call, _, dtype) in candidates.items():
                x = torch.randn(tokens, k).to(dtype)
                calls[name] = lambda i, call=call, x=x: call(i, x)
            for name, (median, best) in time_calls(calls, copies if tokens == 1 else 1, seconds).items():
                row = {"n": n, "k": k, "tokens": tokens, "name": name, "median_seconds": median, "best_seconds": best}
                rows.append(row | {"load": os.getloadavg()[0], "bandwidth": bandwidth})
                work, unit = 2 * tokens * n * k / 1e9, "GFLOP/s"
                if tokens == 1:
                    work, unit = candidates[name][1] * n * k / 1e9, "GB/s"
                line = f"{n:>6}x{k:<5} T={tokens:<4} {name:<22} {work / median:7.1f} {work / best:7.1f} {unit}"
                if tokens == 1:
                    share = work / best / bandwidth * 1e9
                    line += f"  {n * k / best / 1e9:6.1f} Gweights/s, {share:.2f} of memory"
                print_line(f"{line}  load {os.getloadavg()[0]:.1f}")
    return rows


def main() -> None:
    """Parse the arguments, measure, write the results."""
    kernels = llmctl.cpu.kernels.load()
    if kernels is None:
        sys.exit(str(llmctl.cpu.kernels.missing()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="*", default=[i for i in kernels.usable if i != "portable"])
    parser.add_argument("--seconds", type=float, default=0.3, help="seconds per kernel and shape")
    parser.add_argument("--json", type=Path, help="file to write all results to")
    parser.add_argument("--one-thread", action="store_true", help="use one thread and count its CPU time")
    options = parser.parse_args()
    if options.one_thread:
        torch.set_num_threads(1)
        CLOCK["now"] = time.thread_time
    with torch.inference_mode():
        rows = measure(kernels, options.isa, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
