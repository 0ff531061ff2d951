"""The GPUs that torch sees, in torch's own order: for AMD and Intel, and for NVIDIA where NVML does not tell.

torch is asked in a child process, because its import takes seconds and the driver can hang. The answer is remembered
for the life of this process; once torch computes on a GPU in this process, torch is asked here.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from llmctl.machine.child_process import end_child, json_lines, start_child
from llmctl.machine.torch_build import has_code_for

CHILD = Path(__file__).with_name("torch_child.py")
# The variables on which the answer depends: those of CUDA, of HIP and ROCm, and of oneAPI.
_VARIABLES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "GPU_DEVICE_ORDINAL", "ZE_", "ONEAPI_", "SYCL_")
_LIMIT_SECONDS = 60.0  # importing torch from a cold disk can take half of that


class TorchGpu(TypedDict):
    """A GPU as torch describes it, with the fields of `detection.Gpu`; None if torch does not tell the free memory."""

    kind: Literal["cuda", "rocm", "xpu"]
    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int | None
    torch_has_code: bool | None
    shares_ram: bool


def may_find_gpus(*, is_amd: bool, root: Path = Path("/")) -> bool:
    """Return True if the drivers of AMD or Intel have made the device files that their libraries open (Linux)."""
    names = ("kfd", "dxg") if is_amd else ("dri", "dxg")  # dxg: WSL 2
    return sys.platform != "linux" or any((root / "dev" / name).exists() for name in names)


def torch_gpus(*, limit_seconds: float = _LIMIT_SECONDS) -> tuple[TorchGpu, ...] | None:
    """Return the GPUs that torch sees; None if it gives no answer within the limit."""
    torch: Any = sys.modules.get("torch")
    modules = [getattr(torch, name, None) for name in ("cuda", "xpu")]  # missing while another thread imports torch
    if any(module is not None and module.is_initialized() for module in modules):
        return tuple(describe_gpus(torch))
    relevant = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    return _answer_of_child(tuple(sorted(relevant.items())), limit_seconds)


@functools.cache
def _answer_of_child(_environment: Sequence[tuple[str, str]], limit_seconds: float) -> tuple[TorchGpu, ...] | None:
    child = start_child([sys.executable, "-P", str(CHILD), str(limit_seconds)])
    try:
        out, _ = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_child(child)
    answers = [line["gpus"] for line in json_lines(out.splitlines()) if "gpus" in line]
    return tuple(_parsed(gpu) for gpu in answers[0]) if answers else None


def _parsed(gpu: Mapping[str, Any]) -> TorchGpu:
    """Return a GPU of the child's JSON, which has no tuples."""
    return TorchGpu(**{**gpu, "capability": tuple(gpu["capability"])})  # type: ignore[typeddict-item]


def describe_gpus(torch: Any) -> list[TorchGpu]:
    """Return the GPUs of a torch that has been imported, asking its drivers."""
    if torch.cuda.is_available():
        architectures = torch.cuda.get_arch_list()
        return [_describe_cuda(torch, index, architectures) for index in range(torch.cuda.device_count())]
    if torch.xpu.is_available():
        return [_describe_xpu(torch, index) for index in range(torch.xpu.device_count())]
    return []


def _describe_cuda(torch: Any, index: int, architectures: Sequence[str]) -> TorchGpu:
    """Describe a card of NVIDIA or AMD, which torch both calls `cuda`."""
    properties, is_amd = torch.cuda.get_device_properties(index), bool(torch.version.hip)
    capability = (properties.major, properties.minor)
    if is_amd:
        # "gfx942:sramecc+:xnack-"; generic targets stand for several
        gfx = properties.gcnArchName.partition(":")[0]
        listed = [name for name in architectures if name.startswith("gfx")]
        has_code = None if not listed or any("generic" in name for name in listed) else gfx in listed
    else:
        has_code = has_code_for(capability, architectures)
    return TorchGpu(
        kind="rocm" if is_amd else "cuda",
        name=properties.name,
        capability=capability,
        total_bytes=properties.total_memory,
        free_bytes=_free_bytes(torch.cuda, index),
        torch_has_code=has_code,
        shares_ram=bool(properties.is_integrated),
    )


def _describe_xpu(torch: Any, index: int) -> TorchGpu:
    """Describe a GPU of Intel. torch compiles for those that its build has no code for."""
    properties = torch.xpu.get_device_properties(index)
    return TorchGpu(
        kind="xpu",
        name=properties.name,
        capability=(0, 0),
        total_bytes=properties.total_memory,
        free_bytes=_free_bytes(torch.xpu, index),
        torch_has_code=None,
        shares_ram=bool(getattr(properties, "is_integrated_gpu", False)),  # a property from torch 2.12 on
    )


def _free_bytes(device_module: Any, index: int) -> int | None:
    """Return a card's free memory.

    A card that is full cannot hold the context that asking needs. Drivers of Intel's integrated GPUs, and older ones of
    Arc cards, do not tell it (pytorch#162909).
    """
    try:
        return int(device_module.mem_get_info(index)[0])
    except RuntimeError as error:
        return None if "doesn't support querying" in str(error) else 0
