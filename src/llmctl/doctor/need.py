"""The requirements of a configuration on a machine, and the keys that cause them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmctl.doctor.findings import Findings
from llmctl.errors import LlmctlError
from llmctl.plan import Plan, PlanRequest, make_plan
from llmctl.quant.registry import backend_packages


@dataclass(frozen=True)
class Need:
    """The reasons why things are needed, as text; None if a thing is not needed.

    Attributes:
        cuda: Reason for a GPU that torch can use; on FlashAttention-2's part, one of NVIDIA.
        flash_attention: Reason for the package flash-attn.
        packages: Reasons for packages of quantisation backends, by package name.
        download: Reason for the Hub and a writable cache.
    """

    cuda: str | None = None
    flash_attention: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    download: str | None = None


def plan_of(findings: Findings) -> Plan | LlmctlError | None:
    """Return the plan, or the error that prevents it; None if the model or the machine is unknown."""
    if findings.machine is None or findings.model is None:
        return None
    try:
        return make_plan(PlanRequest(findings.config, findings.machine, findings.model))
    except LlmctlError as error:
        return error


def needs(findings: Findings, plan: Plan | LlmctlError | None) -> Need:
    """Return the requirements of the configuration, with `auto` values resolved for this machine."""
    flash = _flash_attention(findings, plan)
    cuda = _cuda(findings) or ("FlashAttention-2 needs it" if flash else None)
    hub = findings.hub
    wanted = f"{hub.wanted} is not on this machine" if hub is not None and hub.wanted else None
    return Need(cuda, flash, _backend_packages(findings), wanted)


def _cuda(findings: Findings) -> str | None:
    """Return why a GPU is needed: the device map names one, or is `auto` and the driver shows one."""
    wanted = findings.config.load.device_map
    places = wanted.values() if isinstance(wanted, dict) else (wanted,)
    named = next((place for place in places if str(place).isdigit() or str(place).startswith(("cuda", "xpu"))), None)
    if named is not None:
        return f"load.device_map names {named}"
    gpus = findings.machine.gpus if findings.machine else ()
    if wanted in ("auto", "balanced", "balanced_low_0", "sequential") and any(gpu.kind != "mps" for gpu in gpus):
        return f"load.device_map is {wanted}, which uses the GPU"
    return None


def _flash_attention(findings: Findings, plan: Plan | LlmctlError | None) -> str | None:
    if findings.config.load.attn_implementation == "flash_attention_2":
        return "load.attn_implementation names it"
    if isinstance(plan, Plan) and plan.model_kwargs["attn_implementation"] == "flash_attention_2":
        return "load.attn_implementation is auto, which selects it here"
    return None


def _backend_packages(findings: Findings) -> dict[str, str]:
    section, stored = findings.config.quantization, findings.model.stored_quantization if findings.model else None
    reasons = {}
    for backend, package in backend_packages():
        if section.bits is not None and section.backend in ("auto", backend.name):
            reasons[package.name] = f"quantization.bits is {section.bits}"
        elif stored is not None and stored.backend is backend:
            reasons[package.name] = f"the model is stored in {stored.name}"
    return reasons
