"""Checks of the format of a pre-quantised checkpoint and of the packages that it needs. Pure."""

from collections.abc import Iterator

from llmctl.doctor.findings import Check, Findings, fault, ok
from llmctl.doctor.software import import_failure
from llmctl.errors import LlmctlError
from llmctl.plan import Plan
from llmctl.plan.devices import candidate_devices
from llmctl.quant.stored_format import Package


def format_packages(findings: Findings) -> tuple[Package, ...]:
    """Return the packages that the model's format needs on the devices that the configuration may use."""
    if findings.model is None or findings.machine is None or findings.model.stored_quantization is None:
        return ()
    try:
        devices = candidate_devices(findings.config, findings.machine)
    except LlmctlError:
        return ()  # the check of the GPU reports it
    return findings.model.stored_quantization.backend.needed_packages(devices)


def check_format(findings: Findings, plan: Plan | LlmctlError | None) -> Iterator[Check]:
    """Check the packages of the model's format, and say what becomes of its weights."""
    model, machine = findings.model, findings.machine
    if model is None or machine is None or model.stored_quantization is None:
        return
    stored = model.stored_quantization
    for package in format_packages(findings):
        yield _package(findings, package, needed=f"the model is stored in the format {stored.backend.name}")
    if isinstance(plan, Plan):
        yield ok("format", f"{stored.label}: {plan.reason('quantization')}")


def _package(findings: Findings, package: Package, *, needed: str) -> Check:
    machine = findings.machine
    assert machine is not None  # noqa: S101 (the caller has checked it)
    obstacle, install = package.obstacle(machine.packages), f"pip install {package.requirement}"
    if obstacle is not None:
        return fault(package.name, obstacle, install, needed=needed)
    trial = findings.trials.get(package.module)
    if trial is not None and trial.outcome != "imported":
        return fault(package.name, import_failure(trial), f"{install} --force-reinstall --no-deps", needed=needed)
    return ok(package.name, machine.packages[package.name])
