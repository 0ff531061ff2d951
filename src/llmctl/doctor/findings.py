"""The findings of the examination, and the checks made from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmctl.config import Config
from llmctl.errors import LlmctlError, Problem
from llmctl.hub.environment import Fault
from llmctl.machine.detection import Machine
from llmctl.machine.nvml import NvidiaDriver
from llmctl.model.info import ModelInfo

Status = Literal["ok", "warning", "broken", "skipped"]

# The memory that a process with torch, transformers and bitsandbytes maps without a model. Measured on Linux, x86-64,
# CPU build of torch 2.13: 0.76 GB at most; the rest is for the stacks of its threads.
BASE_ADDRESS_BYTES = 1_000_000_000

# The name of the trial that loads llmctl's compiled kernels: the module imported for it.
OWN_KERNELS = "llmctl.cpu.kernels"


@dataclass(frozen=True)
class Check:
    """One line of the result.

    Attributes:
        name: Subject of the check.
        status: `broken` if the configuration needs the subject and it does not work; `warning` if it is not needed or
            works badly.
        reason: The finding, in one sentence.
        fix: The command or change that fixes it.
    """

    name: str
    status: Status
    reason: str
    fix: str | None = None


def ok(name: str, reason: str) -> Check:
    """Return a check that passed."""
    return Check(name, "ok", reason)


def warning(name: str, reason: str, fix: str | None = None) -> Check:
    """Return a check of something that works badly, or that this configuration does not need."""
    return Check(name, "warning", reason, fix)


def skipped(name: str, reason: str) -> Check:
    """Return a check that could not be made, or does not apply here."""
    return Check(name, "skipped", reason)


def fault(name: str, reason: str, fix: str | None, *, needed: str | None) -> Check:
    """Return a failed check: broken if there is a reason why it is needed (`needed`), else a warning."""
    if needed is None:
        return Check(name, "warning", f"{reason}; this configuration does not need it", fix)
    return Check(name, "broken", f"{reason}; needed: {needed}", fix)


@dataclass(frozen=True)
class Trial:
    """The result of importing one package in a separate child process.

    Attributes:
        outcome: `imported`; `failed` (with an exception); `crashed` (the process died); `hung` (it was stopped).
        facts: Facts that were read from the imported package.
        error: Type of the exception and first line of its message, or the reason why the process ended.
        missing_module: Module that the exception names as missing.
        foreign_symbols: True if a compiled file was built against libraries other than the installed ones.
        talk: End of the process' standard error.
        seconds: Duration.
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
    """The file system of the cache.

    Attributes:
        folder: Folder of the cache, which may not exist yet.
        place: Nearest existing folder above it, which was examined.
        free_bytes: Bytes that can still be written.
        obstacle: Reason why a small file could not be written: `full`, `read_only` or `not_a_folder`; None if it could.
        message: The system's error message.
        has_links: True if symbolic links can be made there.
    """

    folder: Path
    place: Path
    free_bytes: int
    obstacle: Literal["full", "read_only", "not_a_folder"] | None = None
    message: str = ""
    has_links: bool = True


@dataclass(frozen=True)
class Computer:
    """Facts of this computer that `Machine` does not have.

    Attributes:
        python: Version of Python.
        platform: Description of the operating system.
        cpu_name: Name of the processor; empty if unknown.
        usable_cores: Cores that this process may use, according to its affinity and the container's quota.
        swap_bytes: Swap space.
        container_limit_bytes: Memory limit of the container (cgroup v2), or None.
        address_limit_bytes: RLIMIT_AS, or None.
        file_limit: RLIMIT_NOFILE, or None.
        variables: Environment variables that affect llmctl and are not secret.
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
    """An LlmctlError that a child process reported."""

    kind: str
    message: str
    hint: str | None = None


@dataclass(frozen=True)
class HubState:
    """The Hub, the token, and the model on it.

    Attributes:
        endpoint: Address, without credentials.
        offline: True if network access was not allowed.
        proxy: Proxy in use, without credentials, or None.
        seconds: Response time; None if the Hub was not asked or did not answer.
        unreachable: Reason why the Hub did not answer.
        token_source: Origin of the token in use, or None.
        role: `read`, `write` or `fineGrained`; empty for a browser login; None if the Hub was not asked.
        reads_gated: True if a fine-grained token may read public gated models.
        token_refused: Reason why the Hub rejects the token.
        wanted: Hub id of the model that has to be downloaded, or None.
        download_bytes: Size of the files that are needed to load that model.
        access_refused: Reason why that model cannot be downloaded.
        failure: Reason why huggingface_hub does not work, so that the Hub could not be asked.
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
    """The version requirements in llmctl's own metadata.

    Attributes:
        python: `Requires-Python`.
        tested_pythons: Versions of Python in the classifiers.
        ranges: Range of each package by its import name: `>=5.18,<6`.
        installed: Installed version of each of these packages that is installed.
    """

    python: str = ""
    tested_pythons: tuple[str, ...] = ()
    ranges: Mapping[str, str] = field(default_factory=dict)
    installed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """The facts from which `diagnose` makes the checks.

    Attributes:
        config: Configuration; the defaults if `problems` is not empty.
        user_values: Keys that the user set, with their values, for the report.
        problems: Problems of the configuration.
        machine: This machine; None if it could not be read because psutil is broken.
        computer: Facts that `Machine` does not have.
        driver: NVIDIA's driver.
        trials: Results of the imports of installed packages, by import name.
        requirements: Version requirements.
        hub: State of the Hub; None if it was not asked.
        disk: File system of the cache.
        source: The model as the user named it.
        model: The model, if its files are on this machine.
        model_error: Reason why its files are missing or cannot be used.
        time_limit_seconds: Time limit for an import.
        import_faults: Variables with which the libraries cannot be imported; the trials ran without them.
        connection_faults: Variables with which the Hub cannot be reached.
        doubts: Variables that probably do not do what was intended.
        locked_folders: Folders of llmctl itself that cannot be written, with the system's message.
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
    user_values: Mapping[str, Any] = field(default_factory=dict)
    time_limit_seconds: float = 30.0
    import_faults: tuple[Fault, ...] = ()
    connection_faults: tuple[Fault, ...] = ()
    doubts: tuple[Fault, ...] = ()
    locked_folders: tuple[tuple[Path, str], ...] = ()

    def version(self, package: str) -> str | None:
        """Return the installed version of a package by its import name, or None."""
        known = self.requirements.installed.get(package)
        return known or (self.machine.packages.get(package) if self.machine else None)
