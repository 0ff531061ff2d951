"""The result of planning: decisions with their reasons, and the plan that they make."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmctl.plan.memory import Memory
from llmctl.quant.backend import Quantization


@dataclass(frozen=True)
class Decision:
    """A decision for people to read; logic reads the fields of the plan.

    Attributes:
        key: Subject, in transformers' words: `attn_implementation`.
        value: Outcome.
        reason: Reason in one line.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """The exact arguments for transformers, the memory that they need, and the reasons.

    Attributes:
        source: Hub id or folder, as the user wrote it.
        folder: Folder to load from, or None if the files are not on this machine.
        commit: Commit on the Hub, or None.
        tokenizer_kwargs: Keyword arguments of `AutoTokenizer.from_pretrained`.
        model_kwargs: Keyword arguments of `AutoModelForCausalLM.from_pretrained`, as plain values: the dtype by name,
            `quantization_config` as the arguments of the backend's configuration.
        generation_kwargs: Arguments of `GenerationConfig` without special tokens, which the tokenizer knows.
        environment: Environment variables to set before torch is imported.
        quantization: Quantisation of the weights, stored or applied on loading; None for unquantised weights.
        devices: Devices in use: `cuda:0`, `cpu`, `mps`.
        memory: Memory by purpose.
        decisions: All decisions with their reasons, in order.
        seed: Seed for `transformers.set_seed`.
        deterministic: True to request deterministic algorithms from torch.
        quantized_cache: Folder in the quantised cache to read instead of quantising, or None.
        fills_quantized_cache: True to write the quantised weights to the cache.
        draft: Plan of the draft model, or None.
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
    def is_split(self) -> bool:
        """True if devices of several kinds are in use: part of the model is in RAM beside a GPU."""
        return len({device.partition(":")[0] for device in self.devices}) > 1

    @property
    def quantizes(self) -> bool:
        """True if weights are quantised while they are loaded."""
        return self.quantization is not None and not self.quantization.is_stored

    def reason(self, key: str) -> str:
        """Return the reason of a decision that was made, for people to read."""
        return next(d.reason for d in self.decisions if d.key == key)

    def with_decision(self, decision: Decision) -> "Plan":
        """Return the plan with the decision of the same key replaced."""
        return replace(self, decisions=tuple(decision if d.key == decision.key else d for d in self.decisions))
