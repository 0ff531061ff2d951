"""The nouns: what is known beside a configuration, and how one of its keys is said to vLLM."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Purpose = Literal["serve", "batch"]


@dataclass(frozen=True)
class Target:
    """What is known beside the configuration. The defaults mean that nothing is.

    Attributes:
        purpose: A server for others, or llmctl's own batch: that one says more in each request.
        model: The folder of the model on this machine, or None: vLLM then finds it by its id.
        commit: Its commit on the Hub, or None.
        generation_config: The model's generation_config.json.
        quant_method: How the model is quantised as it is stored, or None.
        adapter: The folder of the adapter on this machine, or None.
        adapter_rank: Its largest rank, or None where it is not known.
        has_bitsandbytes: Whether this vLLM quantises with bitsandbytes; 0.32 does not any more.
        device: What this vLLM computes on, where its package says so: `cpu` or `cuda`.
        host: The address that it listens on.
        port: The port.
    """

    purpose: Purpose = "serve"
    model: str | None = None
    commit: str | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    quant_method: str | None = None
    adapter: str | None = None
    adapter_rank: int | None = None
    has_bitsandbytes: bool = False
    device: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000


@dataclass(frozen=True)
class Said:
    """What a rule gives.

    Attributes:
        kind: `argument` (vLLM is told, on its command line, in its environment or with each request), `idle` (there is
            nothing to tell, and nothing is lost) or `problem` (vLLM cannot be told).
        text: How, or why not.
        arguments: For the command line.
        environment: For the environment.
    """

    kind: Literal["argument", "idle", "problem"]
    text: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def argument(*texts: str) -> Said:
    """It is told on the command line."""
    return Said("argument", shlex.join(texts), texts)


def variable(name: str, value: str) -> Said:
    """It is told in the environment."""
    return Said("argument", f"{name}={value}", environment={name: value})


def idle(reason: str) -> Said:
    """There is nothing to tell, and nothing is lost."""
    return Said("idle", reason)


def cannot(reason: str) -> Said:
    """vLLM cannot be told."""
    return Said("problem", reason)
