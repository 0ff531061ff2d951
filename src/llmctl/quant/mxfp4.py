"""MXFP4 checkpoints, whose experts are stored as blocks of 4-bit floating-point numbers with a power of two each.

llmctl's own kernels multiply by them on a CPU, so that they stay in 4 bits. Elsewhere transformers unpacks them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmctl.cpu.packing import BLOCK, MXFP4_BLOCKS, MXFP4_QUANT_METHOD, MXFP4_SCALES, native_bytes
from llmctl.quant.backend import Choice, Quantization, ScriptLines
from llmctl.quant.packed import packed_weights
from llmctl.quant.stored_format import Layout, StoredFormat, Support

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.model.checkpoint import Tensor

LAYOUT = Layout((MXFP4_BLOCKS,), (MXFP4_SCALES,), lambda tensor, settings: 4)
_MODULE = "llmctl.quant.mxfp4_quantizer"
_PIECE_BYTES = 64 << 20  # of a weight file, read before its pages are released
_NOT_FINITE = 255  # the exponent that stands for NaN


@dataclass(frozen=True, eq=False)
class Mxfp4(StoredFormat):
    """MXFP4 that transformers unpacks while it loads, unless llmctl's kernels can compute with it."""

    def loaded_as(self, quantization: Quantization, config: "Config", *, obstacle: str | None) -> Quantization:
        if obstacle is None and config.model.adapters:
            obstacle = "adapters may change the experts"
        if obstacle is None:
            return replace(quantization, backend=KEPT, bits=4)
        unpacked = replace(self, support={**self.support, "cpu": Support(reason=obstacle)})
        return replace(quantization, backend=unpacked)


@dataclass(frozen=True, eq=False)
class KeptMxfp4(StoredFormat):
    """MXFP4 in the layout of llmctl's kernels."""

    uses_own_kernels = True

    def explain_stored(self, quantization: Quantization, *, dtype: str, devices: tuple[str, ...]) -> tuple[Choice, ...]:
        text = "stored this way, kept in 4 bits: llmctl's own kernels multiply by the experts, 4.25 bits per weight"
        return (Choice("quantization", quantization.label, f"{text}; the other weights in {dtype}"),)

    def stored_bytes(self, tensor: "Tensor", quantization: Quantization, *, dtype_bytes: int) -> int:
        if tensor.name.endswith(MXFP4_BLOCKS) and len(tensor.shape) == 4:
            experts, outputs, blocks, _ = tensor.shape
            return experts * native_bytes(outputs, blocks * BLOCK, 4, "mxfp4")  # with the scales
        if tensor.name.endswith(MXFP4_SCALES):
            return 0
        return super().stored_bytes(tensor, quantization, dtype_bytes=dtype_bytes)

    def mapped_bytes(self, quantization: Quantization) -> int:
        return _PIECE_BYTES

    def script(self, quantization: Quantization) -> ScriptLines:
        imports = (f"import {_MODULE}  # registers the format with transformers",)
        return ScriptLines(("AutoConfig",), imports, edits=(f'settings["quant_method"] = "{MXFP4_QUANT_METHOD}"',))

    def import_package(self) -> None:
        import llmctl.quant.mxfp4_quantizer  # noqa: F401

    def adapt_config(self, settings: dict[str, Any]) -> None:
        settings["quant_method"] = MXFP4_QUANT_METHOD

    def describe(self, model: Any) -> str | None:
        is_kept = any(packed.packing_format == self.name for _, _, packed in packed_weights(model))
        return f"{self.name} 4-bit" if is_kept else None

    def scales(self, model: Any) -> Iterator[tuple[str, Any]]:
        names = {id(module): name for name, module in model.named_modules()}
        for module, name, packed in packed_weights(model):
            if packed.packing_format == self.name:
                for weight in module._parameters[name]:
                    exponents = packed.views(weight)[1]
                    yield (
                        f"{names[id(module)]}.{name}",
                        exponents.float().masked_fill_(exponents == _NOT_FINITE, float("nan")),
                    )


KEPT = KeptMxfp4("mxfp4", {"cpu": Support()}, LAYOUT, imports_compiler=False)
