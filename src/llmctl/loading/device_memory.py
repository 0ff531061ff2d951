"""The memory of devices: recognising that it ran out, giving back what is unused, and reading what a device has."""

import gc
import re
from traceback import clear_frames
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The messages of RuntimeErrors that mean that memory ran out; no other code of llmctl examines messages.
#   DefaultCPUAllocator            the CPU's allocator (c10/core/impl/alloc_cpu.cpp)
#   MPS backend out of memory      Apple's (aten/src/ATen/mps/MPSAllocator.mm)
#   CUDA error: out of memory      torch.AcceleratorError, from a call of the runtime; also HIP, and "CUDA driver error"
#   CUBLAS_STATUS_ALLOC_FAILED     libraries of NVIDIA and AMD that allocate by themselves: cuBLAS, cuDNN, hipBLAS, …
#   UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY   Intel's runtime
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|\b(CUDA|HIP|MPS|XPU)\b.*\bout of memory\b|_STATUS_(\w+_)?ALLOC(ATION)?_FAILED\b"
    r"|_ERROR_OUT_OF_(DEVICE|HOST)_MEMORY\b"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception means that memory ran out, on any kind of device.

    torch has a class of its own for its allocators of GPUs; everything else is a RuntimeError that only its message
    identifies.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def release_memory(error: BaseException | None = None) -> None:
    """Give memory that nothing uses back to the devices.

    Args:
        error: An exception that has been caught. The local variables of the frames in its traceback, which may hold a
            model or the tensors of a pass, are cleared; the traceback can still be printed.
    """
    import torch

    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()  # modules refer to each other in cycles
    for is_available, empty_cache in (
        (torch.cuda.is_available, torch.cuda.empty_cache),
        (torch.xpu.is_available, torch.xpu.empty_cache),
        (torch.backends.mps.is_available, torch.mps.empty_cache),
    ):
        if is_available():
            empty_cache()


def device_memory_bytes(device: "torch.device") -> tuple[int, int] | None:
    """Return the free and the total memory of a GPU; None for another device.

    Memory that torch holds without using it is free for this process.
    """
    import torch

    if device.type not in ("cuda", "xpu"):
        return None
    backend = torch.cuda if device.type == "cuda" else torch.xpu
    free, total = backend.mem_get_info(device)
    return free + backend.memory_reserved(device) - backend.memory_allocated(device), total
