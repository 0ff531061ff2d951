"""The nouns: what was looked at, and what a check says about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmctl.config import Config
from llmctl.errors import LlmctlError, Problem
from llmctl.machine.detection import Machine, NvidiaDriver
from llmctl.model.info import ModelInfo

Status = Literal["ok", "warning", "broken", "skipped"]

# What a process with torch, transformers and bitsandbytes maps before any model is loaded. Measured on Linux, x86-64,
# CPU build of torch 2.13: 0.76 GB at most; the rest is for the stacks of its threads.
BASE_ADDRESS_BYTES = 1_000_000_000

# The name of the trial that opens llmctl's compiled kernels: what is imported for it.
OWN_KERNELS = "llmctl.cpu.kernels"


@dataclass(frozen=True)
class Check:
    """One line of the answer.

    Attributes:
        name: What was checked.
        status: `broken` where the configuration needs it and it does not work; `warning` where it does not work and is
            not needed, or works badly.
        reason: What was found, in one sentence.
        fix: The one command, or the one change, that mends it.
    """

    name: str
    status: Status
    reason: str
    fix: str | None = None


def ok(name: str, reason: str) -> Check:
    """A check that passed."""
    return Check(name, "ok", reason)


def warning(name: str, reason: str, fix: str | None = None) -> Check:
    """Something that works badly, or that this configuration can do without."""
    return Check(name, "warning", reason, fix)


def skipped(name: str, reason: str) -> Check:
    """A check that could not be made, or that has no subject here."""
    return Check(name, "skipped", reason)


def fault(name: str, reason: str, fix: str | None, *, needed: str | None) -> Check:
    """Something that does not work: broken where it is needed (`needed` says by what), a warning elsewhere."""
    if needed is None:
        return Check(name, "warning", f"{reason}; this configuration does not need it", fix)
    return Check(name, "broken", f"{reason}; needed: {needed}", fix)


@dataclass(frozen=True)
class Trial:
    """How the import of one package went, in a child process of its own.

    Attributes:
        outcome: `imported`; `failed` with an exception; `crashed`, the process died; `hung`, it was stopped.
        facts: What the package said about itself once it was imported.
        error: The exception's type and the first line of its message, or how the process died.
        missing_module: The module that the exception says is not there.
        foreign_symbols: Whether a compiled file of it was built against other libraries than those that are here.
        talk: The end of what it wrote to standard error.
        seconds: How long it took.
    """

    outcome: Literal["imported", "failed", "crashed", "hung"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    missing_module: str | None = None
    foreign_symbols: bool = False
    talk: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Disk:
    """The file system that the cache lies on.

    Attributes:
        folder: The cache's folder, which may not exist yet.
        place: The nearest folder above it that exists: where was looked.
        free_bytes: What may still be written there.
        obstacle: Why a small file could not be written there: `full`, `read_only` or `not_a_folder`; None if it could.
        message: The system's own words for that.
    """

    folder: Path
    place: Path
    free_bytes: int
    obstacle: Literal["full", "read_only", "not_a_folder"] | None = None
    message: str = ""


@dataclass(frozen=True)
class Computer:
    """What matters of this computer beside `Machine`.

    Attributes:
        python: Its version.
        platform: The operating system, in words.
        cpu_name: As the processor calls itself; empty where unknown.
        usable_cores: Cores that this process may use: affinity and the container's quota considered.
        swap_bytes: Swap space.
        container_limit_bytes: The container's limit of memory (cgroup v2), or None.
        address_limit_bytes: RLIMIT_AS, or None.
        file_limit: RLIMIT_NOFILE, or None where there is none.
        variables: The variables of the environment that matter here and are no secrets.
    """

    python: str
    platform: str
    cpu_name: str = ""
    usable_cores: int = 1
    swap_bytes: int = 0
    container_limit_bytes: int | None = None
    address_limit_bytes: int | None = None
    file_limit: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """An error of llmctl that was met in a child process."""

    kind: str
    message: str
    hint: str | None = None


@dataclass(frozen=True)
class HubState:
    """The Hub, the token, and the model on it.

    Attributes:
        endpoint: Its address, without credentials.
        offline: Whether the network was forbidden.
        proxy: The proxy on the way, without credentials; or None.
        seconds: How long it took to answer, or None where it was not asked or did not.
        unreachable: Why it did not answer.
        token_source: Where the token in use comes from; or None.
        role: `read`, `write` or `fineGrained`; empty for a browser login; None where the Hub was not asked.
        reads_gated: For a fine-grained token, whether it may read public gated models.
        token_refused: Why the Hub does not take the token.
        wanted: The Hub id of the model that has to be downloaded; None where none has to be.
        download_bytes: The size of what loading that model needs.
        access_refused: Why that model cannot be downloaded.
        failure: Why the questions themselves could not be asked: huggingface_hub is broken.
    """

    endpoint: str = ""
    offline: bool = False
    proxy: str | None = None
    seconds: float | None = None
    unreachable: Refusal | None = None
    token_source: str | None = None
    role: str | None = None
    reads_gated: bool | None = None
    token_refused: Refusal | None = None
    wanted: str | None = None
    download_bytes: int | None = None
    access_refused: Refusal | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Requirements:
    """What llmctl's own package says about versions.

    Attributes:
        python: Its `Requires-Python`.
        tested_pythons: The versions of Python it names.
        ranges: The range of each package by its import name: `>=5.18,<6`.
        installed: The version of each of these packages that is here; absent ones are left out.
    """

    python: str = ""
    tested_pythons: tuple[str, ...] = ()
    ranges: Mapping[str, str] = field(default_factory=dict)
    installed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """Everything that was looked at; `diagnose` makes the checks of it.

    Attributes:
        config: What is asked; the defaults where `problems` is not empty.
        asked: The keys that somebody set, with their values: for the report.
        problems: What is wrong with the configuration.
        machine: This machine, or None where it could not be read (psutil is broken).
        computer: What `Machine` leaves out.
        driver: NVIDIA's driver, or what is missing of it.
        trials: How each import went, by import name; packages that are not installed are left out.
        requirements: The ranges of versions.
        hub: The Hub; None where it was not looked at.
        disk: The cache's file system.
        source: What a person calls the model.
        model: The model, if its files are on this machine.
        model_error: Why its files cannot be used, or why there are none.
        time_limit_seconds: How long an import was waited for.
    """

    config: Config
    computer: Computer
    machine: Machine | None = None
    driver: NvidiaDriver = field(default_factory=NvidiaDriver)
    trials: Mapping[str, Trial] = field(default_factory=dict)
    requirements: Requirements = field(default_factory=Requirements)
    hub: HubState | None = None
    disk: Disk | None = None
    source: str = ""
    model: ModelInfo | None = None
    model_error: LlmctlError | None = None
    problems: tuple[Problem, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    time_limit_seconds: float = 30.0

    def version(self, package: str) -> str | None:
        """The installed version of a package by its import name, or None."""
        known = self.requirements.installed.get(package)
        return known or (self.machine.packages.get(package) if self.machine else None)
