"""The checks made from the findings. Pure."""

from collections.abc import Iterator

from llmctl.doctor.account import check_account
from llmctl.doctor.checkpoint_format import check_format
from llmctl.doctor.computer import check_computer
from llmctl.doctor.findings import Check, Findings, fault, ok, skipped, warning
from llmctl.doctor.gpu import check_gpu
from llmctl.doctor.need import Need, needs, plan_of
from llmctl.doctor.software import check_software
from llmctl.errors import LlmctlError
from llmctl.plan import Plan
from llmctl.units import format_bytes


def diagnose(findings: Findings) -> tuple[Check, ...]:
    """Return all checks in reading order: configuration, software, machine, and the plan that results."""
    plan = plan_of(findings)
    need = needs(findings, plan)
    return (
        *_configuration(findings),
        *_environment(findings, need),
        *check_gpu(findings, need),
        *check_software(findings),
        *check_format(findings, plan),
        *check_account(findings, need),
        *check_computer(findings, need, plan),
        *_model(findings, plan),
        *_images(findings),
    )


def is_healthy(checks: tuple[Check, ...]) -> bool:
    """Return True if nothing that the configuration needs is broken."""
    return all(check.status != "broken" for check in checks)


def _configuration(findings: Findings) -> Iterator[Check]:
    for problem in findings.problems:
        yield Check("configuration", "broken", str(problem), "every key with its value: llmctl config show --all")
    if findings.problems:
        yield skipped("configuration", "the checks below use the defaults")
    else:
        count = len(findings.user_values)
        yield ok("configuration", f"{count} key{'s' if count != 1 else ''} set" if count else "the defaults")


def _environment(findings: Findings, need: Need) -> Iterator[Check]:
    """Check the variables that decide how the libraries are imported and how the Hub is reached."""
    name = "environment"
    for faulty in findings.import_faults:
        yield Check(name, "broken", f"{faulty.variable} {faulty.problem}: no command runs", faulty.fix)
    unreachable = findings.hub.unreachable if findings.hub else None
    for faulty in findings.connection_faults:
        text = f"{faulty.variable} {faulty.problem}"
        if faulty not in findings.import_faults and (unreachable is None or unreachable.message != text):
            yield fault(name, text, faulty.fix, needed=need.download)
    for doubtful in findings.doubts:
        yield warning(name, f"{doubtful.variable} {doubtful.problem}", doubtful.fix)
    for folder, message in findings.locked_folders:
        reason = f"llmctl cannot write to {folder}: {message}; it remembers nothing and keeps no quantised copies"
        yield warning("llmctl's folders", reason, "export LLMCTL_HOME=FOLDER   (a folder that you may write to)")


def _model(findings: Findings, plan: Plan | LlmctlError | None) -> Iterator[Check]:
    """Check the model's files and the plan."""
    if findings.model_error is not None:
        yield Check("model", "broken", findings.model_error.message, findings.model_error.hint)
    elif findings.model is not None:
        model = findings.model
        yield ok("model", f"{findings.source}, {model.parameters / 1e6:,.0f} million parameters, {model.architecture}")
    elif findings.hub is not None and findings.hub.wanted:
        yield skipped("model", f"{findings.source} is not on this machine")
    else:
        yield skipped("model", f"{findings.source}: included in the demo extra; it is converted at its first use")
    if isinstance(plan, LlmctlError):
        yield Check("plan", "broken", plan.message, plan.hint)
    elif plan is not None:
        yield ok("plan", _summary(plan))
    else:
        yield skipped("plan", "it needs the model's files")


def _images(findings: Findings) -> Iterator[Check]:
    """Say when the vision tower of a model is loaded, and check the package that decodes images."""
    model, when = findings.model, findings.config.load.images
    if model is None or not model.takes_images:
        return
    towers = f"{', '.join(model.towers)}: {format_bytes(sum(model.towers.values()))} on disk"
    if when == "never":
        yield skipped("images", f"{towers}; turned off (load.images)")
        return
    text = f"{towers}, loaded {'at the start' if when == 'always' else 'with the first image'}"
    if findings.version("pillow") is None:
        reason = f"{text}; Pillow, which decodes images, is not installed"
        yield warning("images", reason, "pip install 'llmctl-hf[images]'")
    else:
        yield ok("images", text)


def _summary(plan: Plan) -> str:
    dtype, attention = plan.model_kwargs["dtype"], plan.model_kwargs["attn_implementation"]
    quantized = next((d.value for d in plan.decisions if d.key == "quantization"), "none")
    stored = f", {quantized}" if quantized != "none" else ""
    return f"{', '.join(plan.devices)}: {dtype}{stored}, {attention}, {format_bytes(plan.memory.total_bytes)} of memory"
