"""The limits of this machine: memory bandwidth, and operations per second in a matrix product.

This runs in a child process. The CPU is measured with as many threads as torch uses. GPUs are timed with torch's
events, following the documentation of torch.cuda.Event and torch.mps; this part has never run on a GPU.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from llmctl.machine.child_process import WriteJson
from llmctl.machine.detection import measure_ram_bandwidth

if TYPE_CHECKING:
    from torch import Tensor

# A product of square matrices of this size is large enough to reach the rate, and small enough to take a second.
_CPU_SIZE, _GPU_SIZE = 2048, 8192
_SLOW_SIZE = (
    256  # for dtypes without a fast product in torch: bfloat16 without hardware support can be a hundred times slower
)
_ROUNDS = 4
_COPY_BYTES = 1_000_000_000


def say_bounds(say: WriteJson, *, devices: dict[str, list[str]]) -> None:
    """Report `bandwidth` and `flops` of each device, the latter by dtype: `{"cpu": ["float32"]}`."""
    import torch

    for device, dtypes in devices.items():
        is_cpu = device == "cpu"
        say(
            device=device,
            threads=torch.get_num_threads() if is_cpu else None,
            bandwidth=measure_ram_bandwidth(threads=torch.get_num_threads()) if is_cpu else copy_bandwidth(device),
            flops={dtype: product_flops(device, dtype) for dtype in dtypes},
        )


def product_flops(device: str, dtype: str) -> float:
    """Measure operations per second of a square matrix product; a multiplication and an addition count as two.

    The result is the best of a few rounds, so that other work on the machine has little effect. On a CPU, 16-bit
    numbers can be converted to float32 first, so their rate is at least that of float32.
    """
    if device != "cpu":
        return _flops(device, dtype, _GPU_SIZE)
    best = _flops(device, "float32", _CPU_SIZE)
    if dtype != "float32" and _flops(device, dtype, _SLOW_SIZE) > 2 * _CPU_SIZE**3:  # less than a second
        best = max(best, _flops(device, dtype, _CPU_SIZE))
    return best


@cache  # both 16-bit types need the rate of float32
def _flops(device: str, dtype: str, size: int) -> float:
    import torch

    left, right = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / _best_seconds(device, lambda: torch.mm(left, right, out=out))


def copy_bandwidth(device: str) -> float:
    """Measure the memory bandwidth of a GPU with a copy, in bytes per second; reads and writes both count."""
    import torch

    source: Tensor = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _best_seconds(device, lambda: target.copy_(source))


def _best_seconds(device: str, operation: Callable[[], Any]) -> float:
    """Return the shortest of several times, after a warm-up."""
    return min([_seconds(device, operation) for _ in range(_ROUNDS + 1)][1:])


def _seconds(device: str, operation: Callable[[], Any]) -> float:
    import torch

    if device.startswith("cuda"):
        event: Any = torch.cuda.Event
        began, ended = event(enable_timing=True), event(enable_timing=True)
        with torch.cuda.device(device):
            began.record()
            operation()
            ended.record()
            torch.cuda.synchronize()
        return float(began.elapsed_time(ended)) / 1000
    clock = time.perf_counter()
    operation()
    if device == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - clock
