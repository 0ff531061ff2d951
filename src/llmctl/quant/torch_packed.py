"""Weights for torch's packed kernels, used if llmctl's own kernels were not compiled."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmctl.cpu.packing import torch_bytes
from llmctl.errors import LlmctlError, MachineError
from llmctl.quant.backend import Quantization
from llmctl.quant.packed import PackedBackend

if TYPE_CHECKING:
    from llmctl.machine.detection import Machine

# Share of the memory bandwidth while decoding, by bits.
_DECODE_SHARES = {8: (0.25, 0.8), 4: (0.2, 0.6)}


class TorchPackedBackend(PackedBackend):
    """The backend `torch`. torch packs 4 bits for the processor it runs on, so nothing is stored in this format."""

    name = "torch"
    kernels_name = "torch's packed kernels"
    bits_text = MappingProxyType({4: "5", 8: "8"})

    def chosen_because(self) -> str:
        return "; by torch's packed kernels: llmctl's own, which are faster, were not compiled"

    def packing_arguments(self, bits: int, head_bits: int | None) -> dict[str, Any]:
        """Return the arguments of `LlmctlConfig`, its `quant_method` included. The head is always in 8 bits."""
        return {**super().packing_arguments(bits, 8 if head_bits else None), "kernels": "torch"}

    def layout_bytes(self, outputs: int, inputs: int, bits: int) -> int:
        return torch_bytes(outputs, inputs, bits)

    def recognise(self, stored: Mapping[str, Any]) -> Quantization | None:
        return None

    def decode_share(self, quantization: Quantization, device: str, machine: "Machine") -> tuple[float, float] | None:
        return _DECODE_SHARES[quantization.bits or 4]

    def cache_obstacle(self) -> str | None:
        return "torch's kernels pack weights for the processor they run on"

    def save_obstacle(self) -> LlmctlError | None:
        return MachineError(
            "weights for torch's kernels are packed for one processor and cannot be written",
            hint="install llmctl with a C++ compiler on the PATH, or --set quantization.backend=bitsandbytes",
        )


BACKEND = TorchPackedBackend()
