"""The target of a translation, and the outcome of one key."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmctl.quant.backend import Quantization

Purpose = Literal["serve", "batch"]


@dataclass(frozen=True)
class Target:
    """Facts beside the configuration. The defaults mean that nothing is known.

    Attributes:
        purpose: A server for others, or llmctl's own batch, whose requests carry more of the settings.
        model: The model's folder on this machine; without it, vLLM looks the model up by its id.
        commit: Its commit on the Hub.
        generation_config: The model's generation_config.json.
        quantization: The quantisation of the stored model.
        adapter: The adapter's folder on this machine.
        adapter_rank: Its largest rank.
        has_bitsandbytes: True if this vLLM quantises with bitsandbytes; 0.32 does not.
        device: The device of this vLLM, if its package names it: `cpu` or `cuda`.
        host: The bind address.
        port: The port.
    """

    purpose: Purpose = "serve"
    model: str | None = None
    commit: str | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)
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
    """Translate to command-line arguments."""
    return Outcome("translated", shlex.join(texts), texts)


def variable(name: str, value: str) -> Outcome:
    """Translate to an environment variable."""
    return Outcome("translated", f"{name}={value}", environment={name: value})


def translated(text: str) -> Outcome:
    """Translate outside the command line: `text` names the place."""
    return Outcome("translated", text)


def not_needed(reason: str) -> Outcome:
    """Report a key that vLLM does not need."""
    return Outcome("not needed", reason)


def not_possible(reason: str) -> Outcome:
    """Report a key that vLLM has no equivalent for."""
    return Outcome("not possible", reason)
