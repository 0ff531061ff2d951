"""The shared part of the backends for packed weights. `cpu.layers` describes the layout of such weights in memory."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmctl.cpu.packing import QUANT_METHOD
from llmctl.errors import LlmctlError, UserError
from llmctl.quant.backend import Choice, QuantBackend, Quantization, ScriptLines, Variant, is_skipped
from llmctl.quant.precision import Kind, kind_of

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.machine.detection import Machine
    from llmctl.model.checkpoint import Tensor

_PIECE_BYTES = 64 << 20  # of a weight file, read and packed at a time


class PackedBackend(QuantBackend):
    """Weights packed for kernels of a CPU: linear layers, experts, the output head and an embedding tied to it.

    Attributes:
        kernels_name: Name of its kernels in messages.
        bits_text: Bits of a weight with its scales, by bits.
    """

    kernels_name: str
    bits_text: Mapping[int, str]
    cache_versions = MappingProxyType({"transformers": 1})  # the kernels' own version is that of the format

    def refusal(self, config: "Config", machine: "Machine", *, devices: tuple[str, ...]) -> LlmctlError | None:
        if config.model.adapters:
            return UserError(
                f"adapters cannot be put on weights for {self.kernels_name}",
                hint="use quantization.backend: bitsandbytes, or omit --quant",
            )
        if devices != ("cpu",):
            return UserError(
                f"{self.kernels_name} run on CPUs only, and the model is placed on {', '.join(devices)}",
                hint="use --device-map cpu, or an unquantised model with quantization.backend: bitsandbytes",
            )
        return None

    def plan(
        self, config: "Config", machine: "Machine", *, devices: tuple[str, ...], product_dtype: str
    ) -> tuple[Quantization, tuple[Choice, ...]]:
        section = config.quantization
        assert section.bits is not None  # noqa: S101 (the caller quantises)
        arguments = self.packing_arguments(section.bits, section.head_bits)
        if section.skip_modules is not None:
            arguments["skip_modules"] = list(section.skip_modules)
        quantization = Quantization(self, section.bits, f"{self.name} {section.bits}-bit", arguments)
        head_bits = arguments["head_bits"]
        head = f"the output head in {head_bits}" if head_bits else "the output head unquantised"
        why = self.chosen_because() if section.backend == "auto" else ""
        reason = f"{self.bits_text[section.bits]} bits per weight with the scales, {head}{why}"
        return quantization, (Choice("quantization", quantization.label, reason),)

    def keep(
        self,
        quantization: Quantization,
        *,
        heads: tuple[str, ...],
        read_directly: tuple[str, ...],
        kept: tuple[str, ...],
    ) -> Quantization:
        if not read_directly:
            return quantization
        skipped = [*quantization.arguments.get("skip_modules", ()), *read_directly]
        return replace(quantization, arguments={**quantization.arguments, "skip_modules": skipped})

    def packing_arguments(self, bits: int, head_bits: int | None) -> dict[str, Any]:
        """Return the arguments of `LlmctlConfig`, its `quant_method` included."""
        return {"quant_method": QUANT_METHOD, "bits": bits, "head_bits": head_bits}

    @abstractmethod
    def chosen_because(self) -> str:
        """Return why `quantization.backend: auto` chose this backend, as an addition to the reason."""

    @abstractmethod
    def layout_bytes(self, outputs: int, inputs: int, bits: int) -> int:
        """Return the bytes of a packed weight [outputs, inputs]."""

    def scheme(self, bits: int) -> Quantization:
        return Quantization(self, bits, f"{self.name} {bits}-bit", self.packing_arguments(bits, 8))

    def variants(self) -> tuple[Variant, ...]:
        return Variant("8-bit", {"bits": 8}), Variant("4-bit", {"bits": 4})

    def weight_bytes(self, tensor: "Tensor", quantization: Quantization, *, is_tied: bool) -> int | None:
        bits = self._weight_bits(tensor, quantization, is_tied=is_tied)
        if bits is None:
            return None
        *leading, outputs, inputs = tensor.shape
        return int(math.prod(leading)) * self.layout_bytes(outputs, inputs, bits)

    def _weight_bits(self, tensor: "Tensor", quantization: Quantization, *, is_tied: bool) -> int | None:
        arguments = quantization.arguments
        if is_skipped(tensor, arguments.get("skip_modules") or ()):
            return None
        kind = kind_of(tensor.name, tensor.shape)
        if kind is Kind.HEAD or (kind is Kind.EMBEDDING and is_tied):
            head_bits: int | None = arguments.get("head_bits")
            return head_bits
        return quantization.bits if kind in (Kind.LINEAR, Kind.EXPERTS) else None

    def mapped_bytes(self, quantization: Quantization) -> int | None:
        return 0 if quantization.is_stored else _PIECE_BYTES  # pages are released as soon as they are packed

    def script(self, quantization: Quantization) -> ScriptLines:
        imports = ("from llmctl.quant.hf_quantizer import LlmctlConfig  # registers the format with transformers",)
        if quantization.is_stored:
            return ScriptLines(imports=imports)
        kept = {key: value for key, value in quantization.arguments.items() if key != "quant_method"}
        shown = ", ".join(f"{name}={value!r}" for name, value in kept.items())
        return ScriptLines(imports=imports, config=f"LlmctlConfig({shown})")

    def import_package(self) -> None:
        import llmctl.quant.hf_quantizer  # noqa: F401

    def transformers_config(self, quantization: Quantization) -> Any:
        from llmctl.quant.hf_quantizer import LlmctlConfig

        return LlmctlConfig(**quantization.arguments)

    def describe(self, model: Any) -> str | None:
        weights = [(module, packed) for module, _, packed in packed_weights(model) if self._owns(packed)]
        if not weights:
            return None
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        inner = {packed.bits for module, packed in weights if module is not head and module is not embedding}
        bits = " and ".join(f"{count}-bit" for count in sorted(inner))
        return f"{self.name} {bits}" + (f", output head {head.packed.bits}-bit" if hasattr(head, "packed") else "")

    def parameter_count(self, model: Any) -> int | None:
        counts: dict[int, int] = {}
        for module, name, packed in packed_weights(model):
            if self._owns(packed):
                parameter = module._parameters[name]
                counts[id(parameter)] = (parameter.shape[0] if parameter.dim() == 2 else 1) * packed.n * packed.k
        if not counts:
            return None
        return sum(counts.get(id(parameter), int(parameter.numel())) for parameter in model.parameters())

    def scales(self, model: Any) -> Iterator[tuple[str, Any]]:
        names = {id(module): name for name, module in model.named_modules()}
        for module, name, packed in packed_weights(model):
            if self._owns(packed):
                parameter = module._parameters[name]
                for row in parameter if parameter.dim() == 2 else (parameter,):
                    yield f"{names[id(module)]}.{name}", packed.views(row)[1]

    def _owns(self, packed: Any) -> bool:
        return bool(packed.packing_format == self.name)


def packed_weights(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield the modules, the names of their packed parameters, and how these are packed."""
    for module in model.modules():
        packing = getattr(module, "packed", None)
        if isinstance(packing, dict):
            yield from ((module, name, packed) for name, packed in packing.items())
        elif packing is not None:
            yield module, "weight", packing
