"""The nouns of planning."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmctl.plan.memory import Memory
from llmctl.quant.backend import Quantization


@dataclass(frozen=True)
class Decision:
    """One thing decided, and why.

    Attributes:
        key: What was decided, in transformers' words: `attn_implementation`.
        value: The decision.
        reason: One line, for a person.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """Exactly what will be passed to transformers, what it will take, and why.

    Attributes:
        source: The Hub id or folder, as a person would say it.
        folder: The folder that is loaded, or None when the files are not on this machine.
        commit: The commit on the Hub, or None.
        tokenizer_kwargs: Keyword arguments of `AutoTokenizer.from_pretrained`.
        model_kwargs: Keyword arguments of `AutoModelForCausalLM.from_pretrained`, as plain values: the dtype by name,
            `quantization_config` as the arguments of the backend's configuration.
        generation_kwargs: Arguments of `GenerationConfig`, end-of-sequence tokens excepted: the tokenizer knows those.
        environment: Environment variables to set before torch is imported.
        quantization: How the weights are quantised, stored or while they are loaded; None for not at all.
        devices: The devices in use: `cuda:0`, `cpu`, `mps`.
        memory: What it takes.
        decisions: Every decision with its reason, in the order they were made.
        seed: For `transformers.set_seed`.
        deterministic: Whether torch is asked for deterministic algorithms.
        quantized_cache: The folder of quantised weights in the cache that is read instead of quantising, or None.
        fills_quantized_cache: Whether the quantised weights are written to the cache.
        draft: The plan of the draft model, or None.
        kernels: Kernels that compute unquantised layers and attention: llmctl's own on a CPU, else torch's.
    """

    source: str
    folder: Path | None
    commit: str | None
    tokenizer_kwargs: Mapping[str, Any]
    model_kwargs: Mapping[str, Any]
    generation_kwargs: Mapping[str, Any]
    devices: tuple[str, ...]
    memory: Memory
    decisions: tuple[Decision, ...]
    seed: int
    deterministic: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    quantization: Quantization | None = None
    quantized_cache: Path | None = None
    fills_quantized_cache: bool = False
    draft: "Plan | None" = None
    kernels: Literal["llmctl", "torch"] = "torch"

    @property
    def quantizes(self) -> bool:
        """Whether weights are quantised while they are loaded."""
        return self.quantization is not None and not self.quantization.is_stored

    def reason(self, key: str) -> str:
        """Return the reason of a decision, for a person. Raises StopIteration if there is none."""
        return next(d.reason for d in self.decisions if d.key == key)

    def with_decision(self, decision: Decision) -> "Plan":
        """Return the plan with the decision of the same key replaced."""
        return replace(self, decisions=tuple(decision if d.key == decision.key else d for d in self.decisions))
