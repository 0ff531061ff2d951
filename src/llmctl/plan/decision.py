"""The result of planning: decisions with their reasons, and the plan that they make."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmctl.model.generation_config import LeftOut
from llmctl.plan.gpus import is_card
from llmctl.plan.memory import Memory
from llmctl.quant.backend import Quantization

_SHOWN_CHARACTERS = 70


@dataclass(frozen=True)
class Decision:
    """A decision for people to read; logic reads the fields of the plan.

    Attributes:
        key: Subject, in transformers' words: `attn_implementation`.
        value: Outcome.
        reason: Reason in one line.
        is_note: True to show it without --verbose.
    """

    key: str
    value: Any
    reason: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.reason}"


@dataclass(frozen=True)
class GenerationChoice:
    """The generation settings of a run.

    Attributes:
        arguments: Arguments of `GenerationConfig` without special tokens.
        stop_strings: Texts that end an answer.
        sources: The origin of each setting: `--temperature`, `llmctl.yaml:3`, `default`, …
        from_model: Names of settings that follow the model's files.
        left_out: Settings in the model's files that are not used.
        reason: The reason for sampling or not.
    """

    arguments: Mapping[str, Any]
    stop_strings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    from_model: frozenset[str] = frozenset()
    left_out: tuple[LeftOut, ...] = ()
    reason: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """All settings by name."""
        return {**self.arguments, **({"stop_strings": list(self.stop_strings)} if self.stop_strings else {})}

    def document(self) -> dict[str, Any]:
        """Return the settings with their origins, and what is left out, as JSON values."""
        settings = {name: {"value": value, "from": self.sources[name]} for name, value in self.values.items()}
        return {"settings": settings, "left_out": [asdict(one) for one in self.left_out]}

    def decisions(self) -> Iterator[Decision]:
        """Yield a decision for each setting in use, then for each that is left out."""
        yield Decision("do_sample", self.arguments["do_sample"], self.reason)
        for name, value in self.values.items():
            if name != "do_sample":
                yield Decision(name, shortened(value), self.sources[name])
        for one in self.left_out:
            yield Decision(one.name, one.value or "unused", f"in the model's {one.file}, left out: {one.reason}")


def shortened(value: Any) -> Any:
    """Return a value of plain types, or the beginning of its text if that is long."""
    text = str(value)
    return value if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


@dataclass(frozen=True)
class Plan:
    """The exact arguments for transformers, the memory that they need, and the reasons.

    Attributes:
        source: Hub id or folder, as the user wrote it.
        folder: Folder to load from, or None if the files are not on this machine.
        commit: Commit on the Hub, or None.
        tokenizer_kwargs: Keyword arguments of `from_pretrained` of the tokenizer.
        model_kwargs: Keyword arguments of `from_pretrained`, as plain values: the dtype by name, `quantization_config`
            as the arguments of the backend's configuration.
        generation_kwargs: Arguments of `GenerationConfig` without special tokens, which the tokenizer knows.
        generation: The generation settings with their origins, and what is left out of the model's own.
        environment: Environment variables to set before torch is imported.
        quantization: Quantisation of the weights, stored or applied on loading; None for unquantised weights.
        devices: Devices in use, GPUs first: `cuda:0`, `xpu:0`, `cpu`, `mps`.
        memory: Memory by purpose.
        decisions: All decisions with their reasons, in order.
        seed: Seed for `transformers.set_seed`; None to draw one for each answer.
        deterministic: True to request deterministic algorithms from torch.
        quantized_cache: Folder in the quantised cache to read instead of quantising, or None.
        fills_quantized_cache: True to write the quantised weights to the cache.
        draft: Plan of the draft model, or None.
        kernels: Kernels that compute unquantised layers and attention: llmctl's own on a CPU, else torch's.
        left_out: Bytes on disk of each tower of a composite model that is not loaded with the language model.
        loads_towers: True to load the towers at the start.
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
    seed: int | None
    deterministic: bool = False
    generation: GenerationChoice = field(default_factory=lambda: GenerationChoice({}))
    environment: Mapping[str, str] = field(default_factory=dict)
    quantization: Quantization | None = None
    quantized_cache: Path | None = None
    fills_quantized_cache: bool = False
    draft: "Plan | None" = None
    kernels: Literal["llmctl", "torch"] = "torch"
    left_out: Mapping[str, int] = field(default_factory=dict)
    loads_towers: bool = False

    @property
    def module_devices(self) -> dict[str, str]:
        """torch's name of the device of each module of the device map."""
        cards = {int(name.partition(":")[2]): name for name in self.devices if is_card(name)}
        return {
            module: cards.get(device, f"{device}") if isinstance(device, int) else device
            for module, device in self.model_kwargs["device_map"].items()
        }

    @property
    def is_split(self) -> bool:
        """True if devices of several kinds are in use: part of the model is in RAM beside a GPU."""
        return len({device.partition(":")[0] for device in self.devices}) > 1

    @property
    def quantizes(self) -> bool:
        """True if weights are quantised while they are loaded."""
        return self.quantization is not None and not self.quantization.is_stored

    @property
    def stored_quantization(self) -> Quantization | None:
        """The quantisation that the checkpoint is stored in, or None."""
        return self.quantization if self.quantization is not None and self.quantization.is_stored else None

    def reason(self, key: str) -> str:
        """Return the reason of a decision that was made, for people to read."""
        return next(d.reason for d in self.decisions if d.key == key)

    def with_decision(self, decision: Decision) -> "Plan":
        """Return the plan with the decision of the same key replaced."""
        return replace(self, decisions=tuple(decision if d.key == decision.key else d for d in self.decisions))

    def with_decisions(self, decisions: Sequence[Decision]) -> "Plan":
        """Return the plan with decisions appended that were made while loading; earlier ones of the same key go."""
        keys = {decision.key for decision in decisions}
        return replace(self, decisions=(*(d for d in self.decisions if d.key not in keys), *decisions))
