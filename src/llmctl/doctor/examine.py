"""The examination of the configuration, this machine, imports, the Hub and the model."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmctl.config import Settings
from llmctl.doctor.checkpoint_format import format_packages
from llmctl.doctor.children import Answer, Question, ask_all
from llmctl.doctor.environment import proxy_of, read_computer, read_disk, read_locked_folders, read_requirements
from llmctl.doctor.findings import OWN_KERNELS, Disk, Findings, HubState, Refusal
from llmctl.doctor.privacy import scrubbed
from llmctl.errors import LlmctlError, OfflineError, Problem
from llmctl.hub.environment import (
    Fault,
    connection_faults,
    doubts,
    endpoint_fault,
    import_faults,
    without_credentials,
)
from llmctl.machine.detection import read_machine
from llmctl.machine.nvml import read_nvidia_driver
from llmctl.model import demo
from llmctl.model.info import check_generates_text, read_model_info
from llmctl.model.resolve import EXAMPLE, check_id, is_path, local_folder
from llmctl.quant.registry import backend_packages

# Slowest first: they run in parallel, and the last one to finish determines the total time.
PACKAGES = (
    *(package.name for _, package in backend_packages()),
    "transformers",
    "torch",
    "accelerate",
    "flash_attn",
    "tokenizers",
    "safetensors",
    "psutil",
    OWN_KERNELS,
)
TIME_LIMIT_SECONDS = 30.0
HUB_LIMIT_SECONDS = 12.0
# Values with which the libraries can be imported, for the trials.
_HARMLESS = {"HF_ENDPOINT": "https://huggingface.co", "PYTHONOPTIMIZE": "0"}
HUB_ANSWER_SECONDS = 4  # limit for one connect or one read, unless HF_HUB_DOWNLOAD_TIMEOUT is less


def examine(
    settings: Settings,
    *,
    problems: Sequence[Problem] = (),
    offline: bool = False,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
) -> Findings:
    """Examine this machine as the configuration would use it, without loading or downloading anything.

    Args:
        settings: Configuration; the defaults if `problems` prevented reading it.
        problems: Problems of the configuration.
        time_limit_seconds: Time limit for one import.
    """
    config = settings.config
    model = config.model.id or demo.MODEL_ID
    is_demo = model == demo.MODEL_ID and config.model.revision is None and _has_demo()
    faults = tuple(import_faults(os.environ))
    hub: dict[str, Any] = {"model": None if is_path(model) else model, "revision": config.model.revision}
    hub |= {"offline": offline, "fetches": not is_demo}
    answers = ask_all(_questions(hub, time_limit_seconds, faults))
    hub_answer = answers.pop("hub")
    trials = {name: answer.trial for name, answer in answers.items()}
    machine = read_machine() if "psutil" in trials and trials["psutil"].outcome == "imported" else None
    findings = Findings(
        config=config,
        computer=read_computer(),
        machine=machine,
        driver=read_nvidia_driver(),
        trials=trials,
        requirements=read_requirements(),
        hub=_hub_state(hub_answer, wanted=None if is_path(model) or is_demo else model),
        disk=_disk(hub_answer.facts),
        source=model,
        problems=tuple(problems),
        user_values={key: _value(settings, key) for key in settings.origins},
        time_limit_seconds=time_limit_seconds,
        import_faults=faults,
        connection_faults=_connection_faults(),
        doubts=tuple(doubts(os.environ)),
        locked_folders=read_locked_folders(),
    )
    return _with_format_packages(_with_model(findings, hub_answer.facts, is_demo=is_demo))


def _questions(hub: Mapping[str, Any], time_limit_seconds: float, faults: Sequence[Fault]) -> list[Question]:
    """Return the questions: first the Hub, which mostly waits, then every installed package."""
    harmless = {fault.variable: _HARMLESS.get(fault.variable, "10") for fault in faults}
    bound = harmless | {"HF_HUB_DOWNLOAD_TIMEOUT": str(_answer_seconds())}
    first = Question("hub", min(HUB_LIMIT_SECONDS, time_limit_seconds), hub, bound)
    probes = {package.name: {"probe": package.probe} for _, package in backend_packages()}
    names = filter(_is_installed, PACKAGES)
    return [first, *(Question(name, time_limit_seconds, probes.get(name, {}), harmless) for name in names)]


def _connection_faults() -> tuple[Fault, ...]:
    endpoint = endpoint_fault(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    return (*([endpoint] if endpoint else []), *connection_faults())


def _is_installed(name: str) -> bool:
    """Return True if there is a module or distribution of this name. Nothing is imported."""
    if importlib.util.find_spec(name) is not None:
        return True
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _has_demo() -> bool:
    return demo.demo_folder() is not None or demo.bundled_gguf() is not None


def _answer_seconds() -> int:
    text = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
    return min(int(text), HUB_ANSWER_SECONDS) if text.isdigit() and int(text) > 0 else HUB_ANSWER_SECONDS


def _value(settings: Settings, key: str) -> Any:
    part: Any = settings.config.model_dump(mode="json")
    for name in key.split("."):
        part = part[name]
    return part


def _hub_state(answer: Answer, *, wanted: str | None) -> HubState:
    facts = answer.facts
    endpoint = facts.get("endpoint", "")
    looked = bool(facts.get("looked"))
    failure = None if looked else answer.trial.error
    state = HubState(
        endpoint=without_credentials(endpoint) if endpoint else "",
        offline=bool(facts.get("offline")),
        proxy=proxy_of(endpoint) if endpoint else None,
        seconds=facts.get("seconds"),
        unreachable=_refusal(facts.get("unreachable")),
        token_source=facts.get("token_source"),
        role=facts.get("role"),
        reads_gated=facts.get("reads_gated"),
        token_refused=_refusal(facts.get("token_refused")),
        wanted=None if facts.get("folder") else wanted,
        download_bytes=facts.get("download_bytes"),
        access_refused=_refusal(facts.get("access_refused")),
        failure=failure,
    )
    if looked and not state.offline and state.seconds is None and state.unreachable is None:
        words = f"no answer: {answer.trial.error}" if answer.trial.error else "no answer"
        return replace(state, unreachable=Refusal("unreachable", words))
    return state


def _refusal(facts: Mapping[str, Any] | None) -> Refusal | None:
    return (
        Refusal(facts["kind"], scrubbed(facts["message"]), scrubbed(facts.get("hint") or "") or None) if facts else None
    )


def _disk(facts: Mapping[str, Any]) -> Disk:
    if "cache" in facts:
        return read_disk(Path(facts["cache"]))
    # huggingface_hub is broken: determine its default folder here
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return read_disk(Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser())


def _with_model(findings: Findings, facts: Mapping[str, Any], *, is_demo: bool) -> Findings:
    """Return the findings with the model's files, if they are on this machine."""
    source = findings.source
    folder: Path | None = None
    try:
        if is_path(source):
            folder = local_folder(source)
        else:
            check_id(source, EXAMPLE)
    except LlmctlError as error:
        return replace(findings, model_error=error, hub=replace(findings.hub, wanted=None) if findings.hub else None)
    if folder is None and facts.get("folder"):
        folder = Path(facts["folder"])
    if folder is None and is_demo:
        folder = demo.demo_folder()
    if folder is None:
        return replace(findings, model_error=_absent(findings))
    try:
        info = read_model_info(folder, source=source, commit=facts.get("commit"))
        check_generates_text(info)
        return replace(findings, model=info)
    except LlmctlError as error:
        return replace(findings, model_error=error)


def _with_format_packages(findings: Findings) -> Findings:
    """Return the findings with trials of the packages that the model's format needs and that are installed."""
    modules = [package.module for package in format_packages(findings) if _is_installed(package.module)]
    answers = ask_all([Question(name, findings.time_limit_seconds) for name in modules])
    return replace(findings, trials={**findings.trials, **{name: answer.trial for name, answer in answers.items()}})


def _absent(findings: Findings) -> LlmctlError | None:
    """Return the reason why a missing model cannot be downloaded, or None if it can."""
    hub = findings.hub
    if hub is None or hub.wanted is None or not hub.offline:
        return None
    return OfflineError(
        f"{hub.wanted} is not in the cache, and the network is forbidden",
        hint=f"with a network: llmctl download {hub.wanted}",
    )
