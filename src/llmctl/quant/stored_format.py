"""Checkpoints that are quantised in a format of others: gptq, awq, fp8, mxfp4 and the rest. transformers loads them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmctl.quant.backend import Choice, QuantBackend, Quantization, Variant

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.machine.detection import Machine


class StoredFormat(QuantBackend):
    """A format that llmctl neither makes nor computes with; `name` is the `quant_method` of config.json."""

    can_compile = True

    def __init__(self, method: str) -> None:
        self.name = self.vllm_method = method

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredFormat) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def plan(self, config: "Config", machine: "Machine", *, dtype: str) -> tuple[Quantization, tuple[Choice, ...]]:
        raise NotImplementedError(f"llmctl does not quantise to {self.name}")

    def scheme(self, bits: int) -> Quantization:
        raise NotImplementedError(f"llmctl does not quantise to {self.name}")

    def transformers_config(self, quantization: Quantization) -> Any:
        raise NotImplementedError(f"llmctl does not quantise to {self.name}")

    def variants(self) -> tuple[Variant, ...]:
        return ()

    def recognise(self, stored: Mapping[str, Any]) -> Quantization | None:
        return Quantization(self, None, self.name, stored, is_stored=True)
