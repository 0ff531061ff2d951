"""Memory that ran out is recognised on every kind of device, and is given back before anything is tried again."""

import traceback
import weakref

import pytest
import torch

from llmctl.loading.device_memory import device_memory_bytes, is_out_of_memory, release_memory

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB"),
    torch.cuda.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", 2),
    torch.AcceleratorError("HIP error: out of memory\nFor debugging consider passing AMD_SERIALIZE_KERNEL=3", 2),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.7 GB, other allocations: 384 KB, max allowed: 18 GB)"),
    RuntimeError("XPU out of memory. Tried to allocate 16.00 GiB"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x64 and 32x32)"),
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    ValueError("CUDA out of memory"),
    OSError("out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_memory_that_ran_out_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_the_cpu_allocator_of_this_torch_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


class Tensors:
    """Something large."""


def _fail(kept: list["weakref.ref[Tensors]"]) -> None:
    tensors = Tensors()
    kept.append(weakref.ref(tensors))
    raise RuntimeError("CUDA error: out of memory")


def _translate(kept: list["weakref.ref[Tensors]"]) -> None:
    try:
        _fail(kept)
    except RuntimeError as error:
        raise ValueError("translated") from error


def test_an_exception_that_was_caught_holds_no_tensors_after_the_release_and_can_still_be_shown() -> None:
    kept: list[weakref.ref[Tensors]] = []
    failure: Exception | None = None
    try:
        _translate(kept)
    except ValueError as error:
        failure = error
    assert failure is not None
    assert kept[0]() is not None, "the traceback of the cause holds it"
    release_memory(failure)
    assert kept[0]() is None
    assert "in _fail" in "".join(traceback.format_exception(failure))


def test_memory_that_torch_keeps_without_using_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 25)
    assert device_memory_bytes(torch.device("cuda", 0)) == (45, 100)
    assert device_memory_bytes(torch.device("cpu")) is None
