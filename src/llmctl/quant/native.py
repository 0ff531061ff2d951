"""llmctl's own format: blocks of 32 weights with a scale each, multiplied by llmctl's compiled kernels on a CPU."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmctl.cpu.packing import QUANT_METHOD, native_bytes
from llmctl.errors import LlmctlError, MachineError
from llmctl.quant.backend import Quantization
from llmctl.quant.packed import PackedBackend

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.machine.detection import Machine


class Native(PackedBackend):
    """The backend `llmctl`."""

    name = "llmctl"
    uses_own_kernels = True
    kernels_name = "llmctl's own kernels"
    bits_text = MappingProxyType({4: "4.5", 8: "8.5"})

    def refusal(self, config: "Config", machine: "Machine", *, devices: tuple[str, ...]) -> LlmctlError | None:
        refusal = super().refusal(config, machine, devices=devices)
        if refusal is not None or machine.kernels is not None:
            return refusal
        return MachineError(
            "llmctl's own kernels were not compiled when llmctl was installed",
            hint="reinstall llmctl with a C++ compiler on the PATH, or use the unquantised original of the model",
        )

    def chosen_because(self) -> str:
        return "; on a CPU by llmctl's own kernels"

    def layout_bytes(self, outputs: int, inputs: int, bits: int) -> int:
        return native_bytes(outputs, inputs, bits)

    def recognise(self, stored: Mapping[str, Any]) -> Quantization | None:
        if stored.get("quant_method") != QUANT_METHOD:
            return None
        bits = stored.get("bits", 4) if stored.get("bits") in (None, 4, 8) else None
        label = self.name if bits is None else f"{self.name} {bits}-bit"
        return Quantization(self, bits, label, stored, is_stored=True)


BACKEND = Native()
