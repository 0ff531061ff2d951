"""The first step: the card, the driver, the libraries, and what this machine cannot check."""

import importlib.util
import platform
from collections.abc import Iterator
from typing import Any

from llmctl._version import __version__
from llmctl.bench.bounds import copy_bandwidth, product_flops
from llmctl.bench.gpu_check.workplace import Workplace, rounded
from llmctl.machine.detection import read_machine
from llmctl.machine.nvml import read_nvidia_driver
from llmctl.units import format_bytes

# Names that newer releases have, and what depends on them.
_SINCE_LATER = {
    "varlen_attn": ("torch.nn.attention.varlen", "varlen_attn", ""),
    "varlen_attn with pages": ("torch.nn.attention.varlen", "varlen_attn", "block_table"),
    "varlen_attn independent of the batch": ("torch.nn.attention.varlen", "varlen_attn", "num_splits"),
    "generate_batch": ("transformers.generation.continuous_batching.continuous_api", "ContinuousMixin", ""),
}
_FOR_STEPS = {
    "bitsandbytes": "8 and 4 bits",
    "flash_attn": "FlashAttention-2",
    "llguidance": "structures",
    "fastapi": "the server",
    "uvicorn": "the server",
    "prometheus_client": "the server",
    "torchao": "8 bits by torchao",
    "triton": "compiling",
}


def probe(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Report the machine, the libraries, the names that only newer releases have, and the limits of the card."""
    import torch

    machine = read_machine()
    driver = read_nvidia_driver()
    yield {
        "versions": {"llmctl": __version__, "python": platform.python_version(), **machine.packages},
        "driver": {"version": driver.version, "cuda": driver.cuda, "error": driver.error},
        "ram_bytes": machine.ram_total_bytes,
        "detected": [f"{gpu.kind}:{gpu.index} {gpu.name} {gpu.capability}" for gpu in machine.gpus],
    }
    yield {
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": getattr(torch.version, "hip", None),
            "architectures": torch.cuda.get_arch_list() if torch.cuda.is_available() else [],
        }
    }
    yield {"missing packages": {name: what for name, what in _FOR_STEPS.items() if not _is_installed(name)}}
    yield {"newer names": {title: _has_name(*place) for title, place in _SINCE_LATER.items()}}
    yield from _card(workplace)


def _card(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Report the card, and its bandwidth and operations per second."""
    import torch

    if workplace.tiny:
        workplace.headline = f"the CPU, with tiny models; torch {torch.__version__}"
        return
    properties: Any = torch.cuda.get_device_properties(workplace.device)
    free, total = torch.cuda.mem_get_info(workplace.device)
    yield {
        "card": {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(workplace.device)),
            "total_bytes": total,
            "free_bytes": free,
            "multiprocessors": properties.multi_processor_count,
            "computes": float(torch.ones(2, device=workplace.device).sum()) == 2,
        }
    }
    bandwidth = copy_bandwidth(str(workplace.device))
    flops = product_flops(str(workplace.device), workplace.dtype)
    yield rounded({"bandwidth": bandwidth, "flops": flops, "dtype": workplace.dtype})
    workplace.headline = (
        f"{properties.name}, {format_bytes(free)} free, {bandwidth / 1e9:,.0f} GB/s, {flops / 1e12:,.0f} TFLOP/s "
        f"in {workplace.dtype}; torch {torch.__version__}"
    )


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _has_name(module: str, name: str, parameter: str) -> bool:
    """Return True if a module has a function, and that a parameter. The text of its signature is searched for it."""
    import inspect

    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return not parameter or parameter in str(inspect.signature(function))
