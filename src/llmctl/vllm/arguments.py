"""The target of a translation, and the translation of one key."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmctl.model.generation_config import GenerationDefaults
from llmctl.quant.backend import Quantization

Purpose = Literal["serve", "batch"]


@dataclass(frozen=True)
class Target:
    """The facts besides the configuration on which a translation depends. Defaults stand for unknown facts.

    Attributes:
        purpose: `serve` for a server for clients; `batch` for llmctl's own batch, whose requests contain more settings.
        model: The model's folder on this machine; without it, vLLM finds the model by its id.
        commit: Its commit on the Hub.
        generation: Generation settings in the model's files.
        quantization: The quantisation of the stored model.
        adapter: The adapter's folder on this machine.
        adapter_rank: The adapter's largest rank.
        has_bitsandbytes: True if this vLLM can quantise with bitsandbytes; 0.32 cannot.
        device: The device of this vLLM, if its package shows it: `cpu` or `cuda`.
        host: The bind address.
        port: The port.
    """

    purpose: Purpose = "serve"
    model: str | None = None
    commit: str | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    quantization: Quantization | None = None
    adapter: str | None = None
    adapter_rank: int | None = None
    has_bitsandbytes: bool = False
    device: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000


@dataclass(frozen=True)
class Outcome:
    """The translation of one key.

    Attributes:
        kind: `translated` (to a command-line argument, an environment variable or a field of each request),
            `not needed` (nothing is lost), or `not possible`.
        text: The translation, or the reason why there is none.
        arguments: Command-line arguments.
        environment: Environment variables.
    """

    kind: Literal["translated", "not needed", "not possible"]
    text: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def argument(*texts: str) -> Outcome:
    """Return the outcome of a key that becomes command-line arguments."""
    return Outcome("translated", shlex.join(texts), texts)


def variable(name: str, value: str) -> Outcome:
    """Return the outcome of a key that becomes an environment variable."""
    return Outcome("translated", f"{name}={value}", environment={name: value})


def translated(text: str) -> Outcome:
    """Return the outcome of a key that is translated elsewhere; `text` says where."""
    return Outcome("translated", text)


def not_needed(reason: str) -> Outcome:
    """Return the outcome of a key that vLLM does not need."""
    return Outcome("not needed", reason)


def not_possible(reason: str) -> Outcome:
    """Return the outcome of a key without an equivalent in vLLM."""
    return Outcome("not possible", reason)
