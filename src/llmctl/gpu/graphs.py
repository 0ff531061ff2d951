"""Recording of a computation on a GPU as a CUDA graph, which starts all of its kernels with one call.

A decode step of a model has hundreds of kernels of a few microseconds each, and Python takes longer to start one than
the GPU to run it.
"""

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class GraphRecorder(Protocol):
    """Records computations whose tensors stay where they are."""

    def record(self, run: "Callable[[], Tensor]") -> "Recording":
        """Return a recording of what `run` does, which may call it several times."""


class Recording(Protocol):
    """A recorded computation."""

    def replay(self) -> "Tensor":
        """Repeat the computation with the present contents of its tensors, and return its result.

        The result is overwritten by the next replay.
        """


class CudaGraphRecorder:
    """Records CUDA graphs, on ROCm too. All that exist share the memory of their intermediate results.

    Its state: the newest graph. torch refuses the memory of graphs that are all gone (create_or_incref_pool in
    CUDACachingAllocator.cpp), so the next one after them takes memory of its own.

    Args:
        device: The device on which everything runs.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._newest: weakref.ref[Any] | None = None

    def record(self, run: "Callable[[], Tensor]") -> Recording:
        """Return a graph of what `run` does.

        Raises:
            RuntimeError: something in it cannot be recorded, such as a wait for the GPU.
        """
        import torch

        with torch.cuda.device(self._device):
            before, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            newest = self._newest() if self._newest is not None else None
            memory = newest.pool() if newest is not None else None
            graph = torch.cuda.CUDAGraph()
            try:
                side.wait_stream(before)
                with torch.cuda.stream(side):
                    run()  # libraries allocate their workspaces on first use, which a recording does not allow
                before.wait_stream(side)
                # other threads, such as those that process images, may use the GPU meanwhile
                with torch.cuda.graph(graph, pool=memory, stream=side, capture_error_mode="thread_local"):
                    output = run()
            finally:
                torch.cuda.set_stream(before)  # a failed recording leaves its own stream selected
            self._newest = weakref.ref(graph)
        return _CudaRecording(graph, output)


class _CudaRecording:
    def __init__(self, graph: Any, output: "Tensor") -> None:
        self._graph, self._output = graph, output

    def replay(self) -> "Tensor":
        """Replay the graph and return its output."""
        self._graph.replay()
        return self._output


def is_on_gpu(model: Any) -> bool:
    """Return True if a model is on an NVIDIA or AMD GPU."""
    return bool(model.device.type == "cuda")


def recorder_for(model: Any) -> GraphRecorder | None:
    """Return what records graphs on the device of a model; None where there are no graphs."""
    return CudaGraphRecorder(model.device) if is_on_gpu(model) else None
