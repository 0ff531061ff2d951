"""The report to share, in Markdown and without secrets."""

from collections.abc import Iterator, Sequence

from llmctl._version import __version__
from llmctl.doctor.findings import Check, Findings
from llmctl.doctor.privacy import without_secrets

# Prompts of the user, which do not help to find a fault.
_PRIVATE_KEYS = ("chat.system", "chat.prefill")


def report_text(findings: Findings, checks: Sequence[Check], *, when: str, secrets: Sequence[str] = ()) -> str:
    """Return the report.

    Args:
        when: Date.
        secrets: Tokens of this machine, which must never appear in the report.
    """
    sections = {
        "Checks": _checks(checks),
        "Versions": _versions(findings),
        "Machine": _machine(findings),
        "Environment": (f"{name}={value}" for name, value in findings.computer.variables.items()),
        "Configuration": _configuration(findings),
        "Failed imports": _failed(findings),
    }
    lines = [f"# llmctl doctor, {when}"]
    for title, body in sections.items():
        content = list(body)
        if content:
            lines += ["", f"## {title}", "", "```text", *(line.replace("```", "...") for line in content), "```"]
    return without_secrets("\n".join(lines) + "\n", secrets=secrets)


def _checks(checks: Sequence[Check]) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"{check.status:<7}  {check.name:<{width}}  {check.reason}"
        if check.fix and check.status in ("broken", "warning"):
            yield f"{'':<7}  {'':<{width}}  fix: {check.fix}"


def _versions(findings: Findings) -> Iterator[str]:
    yield f"llmctl {__version__}"
    yield f"Python {findings.computer.python}"
    known = dict(findings.requirements.installed) | (dict(findings.machine.packages) if findings.machine else {})
    yield from (f"{name} {version}" for name, version in sorted(known.items()))


def _machine(findings: Findings) -> Iterator[str]:
    computer, machine, driver = findings.computer, findings.machine, findings.driver
    yield computer.platform
    if computer.cpu_name:
        yield computer.cpu_name
    if machine is not None:
        features = " ".join(sorted(machine.cpu_features))
        yield f"{machine.physical_cores} cores, {computer.usable_cores} usable: {features}"
        yield f"RAM {machine.ram_total_bytes} bytes, {machine.ram_available_bytes} available"
        for gpu in (*machine.gpus, *machine.idle_gpus):
            yield f"{gpu.kind}:{gpu.index} {gpu.name} {gpu.capability} {gpu.total_bytes} bytes, {gpu.free_bytes} free"
            yield f"  torch has code for it: {gpu.torch_has_code}; memory shared with RAM: {gpu.shares_ram}"
    if driver.version or driver.error or driver.cards_on_bus:
        yield f"NVIDIA driver {driver.version}, CUDA {driver.cuda}, error {driver.error}, cards {driver.cards_on_bus}"


def _configuration(findings: Findings) -> Iterator[str]:
    for key, value in findings.user_values.items():
        yield f"{key}: {'(set)' if key in _PRIVATE_KEYS else value}"


def _failed(findings: Findings) -> Iterator[str]:
    for name, trial in findings.trials.items():
        if trial.outcome != "imported":
            yield f"{name}: {trial.outcome}, {trial.error}"
            yield from (f"  {line}" for line in trial.talk.splitlines()[-15:])
