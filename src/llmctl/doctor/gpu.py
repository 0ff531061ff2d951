"""Checks of torch, the driver and the GPUs, and of the packages that need one. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmctl.doctor.findings import Check, Findings, fault, ok, skipped, warning
from llmctl.doctor.need import Need
from llmctl.doctor.software import ALWAYS, in_range, not_importable, package
from llmctl.errors import LlmctlError
from llmctl.machine.detection import Gpu
from llmctl.machine.torch_build import has_code_for
from llmctl.plan.attention import FLASH_DTYPES
from llmctl.plan.devices import candidate_devices
from llmctl.plan.gpus import AMPERE
from llmctl.quant.backend import BackendPackage, QuantBackend
from llmctl.quant.registry import backend_packages
from llmctl.units import format_bytes
from llmctl.versions import without_local

# The oldest driver for each major version of CUDA, which also runs its later minor versions:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
MINIMUM_DRIVER = {11: 450, 12: 525, 13: 580}
SELECTOR = "https://pytorch.org/get-started/locally/"
# Error numbers of NVML (nvmlReturn_t) with a single cause, and its fix.
_NVML_ERRORS = {
    4: ("this user may not access it", "sudo usermod -aG video $USER"),
    9: ("its kernel module is not loaded", "sudo modprobe nvidia"),
    15: ("a card has dropped off the bus", "sudo reboot"),
    18: ("it was updated, and the running kernel still has the old version", "sudo reboot"),
}


def check_gpu(findings: Findings, need: Need) -> Iterator[Check]:
    """Check torch, the GPUs, and the configuration's requirements on them."""
    yield _torch(findings, need)
    if findings.machine is None:
        yield skipped("GPU", "this machine could not be read: psutil is broken")
    else:
        yield _cards(findings, need)
        yield _dtype(findings)
        yield _attention(findings)
    yield _flash_attn(findings, need)
    for backend, required in backend_packages():
        yield _backend_package(findings, need, backend, required)


def nvidia_cards(findings: Findings) -> tuple[Gpu, ...]:
    """Return the NVIDIA cards that the driver shows, including those that this build of torch cannot use."""
    machine = findings.machine
    return tuple(gpu for gpu in (*machine.gpus, *machine.idle_gpus) if gpu.kind == "cuda") if machine else ()


def _torch(findings: Findings, need: Need) -> Check:
    broken = not_importable(findings, "torch", needed=ALWAYS)
    if broken is not None:
        return broken
    facts, cards = findings.trials["torch"].facts, nvidia_cards(findings)
    cuda, version = facts.get("cuda"), facts.get("version") or findings.version("torch") or "torch"
    here = cards[0].name if cards else "an NVIDIA card"
    if cuda is None:
        if facts.get("hip") or facts.get("xpu"):
            return _other_build(findings, version, facts, need)
        if cards or findings.driver.cards_on_bus:
            return _cpu_build(findings, version, here, need)
        idle = findings.machine.idle_gpus if findings.machine is not None else ()
        if idle:
            reason = f"{version} is built for the CPU only, but {idle[0].name} is in this machine"
            return _gpu_fault(findings, "torch", reason, f"choose the build for ROCm at {SELECTOR}", need)
        return in_range(findings, "torch", needed=ALWAYS, about=", built for the CPU")
    if facts.get("cuda_works") or not cards:
        unsupported = _unsupported_card(facts.get("architectures") or (), cards)
        if unsupported is None:
            works = f", built for CUDA {cuda}" + (f", computes on {here}" if facts.get("cuda_works") else "")
            return in_range(findings, "torch", needed=ALWAYS, about=works)
        reason = f"{version} has no code for {unsupported.name} (compute capability {_dotted(unsupported.capability)})"
        return _gpu_fault(findings, "torch", reason, f"choose a build with code for it at {SELECTOR}", need)
    return _no_cuda(findings, version, cuda, here, need)


def _other_build(findings: Findings, version: str, facts: Mapping[str, Any], need: Need) -> Check:
    """Check a torch built for the GPUs of AMD or Intel."""
    built = f"built for ROCm (HIP {facts['hip']})" if facts.get("hip") else "built for Intel's GPUs"
    gpus = findings.machine.gpus if findings.machine is not None else ()
    without = next((gpu for gpu in gpus if gpu.torch_has_code is False), None)
    if without is not None:
        fix = f"choose a build with code for it at {SELECTOR}"
        return _gpu_fault(findings, "torch", f"{version} has no code for {without.name}", fix, need)
    if not facts.get("gpu_works"):
        error = str(facts.get("gpu_error") or "it gives no reason").rstrip(".")
        reason = f"{version} is {built}, but cannot use one: {error}"
        return _gpu_fault(findings, "torch", reason, "rocminfo" if facts.get("hip") else "clinfo", need)
    works = f", {built}" + (f", computes on {gpus[0].name}" if gpus else "")
    return in_range(findings, "torch", needed=ALWAYS, about=works)


def _cpu_build(findings: Findings, version: str, here: str, need: Need) -> Check:
    """Return the most common fault: a build of torch for CPUs on a machine with a GPU."""
    newest = findings.driver.cuda
    supported = f" (its driver supports CUDA up to {_dotted(newest)})" if newest else ""
    reason = f"{version} is built for the CPU only, but {here} is in this machine{supported}"
    if findings.machine is not None and findings.machine.system == "Linux":
        # on Linux the package index has the CUDA build; --force-reinstall, since the version is the same
        fix = f'pip install --force-reinstall "torch=={without_local(version)}"'
    else:
        fix = f"choose the build for CUDA at {SELECTOR}"
    return _gpu_fault(findings, "torch", reason, fix, need)


def _no_cuda(findings: Findings, version: str, cuda: str, here: str, need: Need) -> Check:
    """Return the fault that a torch built for CUDA cannot use the card."""
    newest, major = findings.driver.cuda, int(cuda.partition(".")[0])
    if newest is not None and newest[0] < major:
        reason = (
            f"{version} is built for CUDA {cuda}, but NVIDIA's driver {findings.driver.version} supports CUDA up to "
            f"{_dotted(newest)}"
        )
        minimum = MINIMUM_DRIVER.get(major)
        other = f"choose a torch for CUDA {newest[0]} at {SELECTOR}"
        fix = f"update NVIDIA's driver to {minimum} or newer; or {other}" if minimum else other
        return _gpu_fault(findings, "torch", reason, fix, need)
    error = findings.trials["torch"].facts.get("cuda_error") or "it gives no reason"
    return _gpu_fault(findings, "torch", f"{version} cannot use {here}: {error}", "nvidia-smi", need)


def _gpu_fault(findings: Findings, name: str, reason: str, fix: str, need: Need) -> Check:
    """Return a fault that prevents use of a GPU: broken if a GPU is requested, else a warning with the consequence."""
    if need.cuda:
        return fault(name, reason, fix, needed=need.cuda)
    pinned = findings.config.load.device_map == "cpu"
    return warning(name, reason + ("; load.device_map is cpu" if pinned else "; models run on the CPU instead"), fix)


def _unsupported_card(architectures: Sequence[str], cards: Sequence[Gpu]) -> Gpu | None:
    """Return the first card that none of torch's compiled architectures supports."""
    return next((card for card in cards if has_code_for(card.capability, architectures) is False), None)


def _cards(findings: Findings, need: Need) -> Check:
    machine = findings.machine
    assert machine is not None  # noqa: S101 (the caller has checked it)
    if machine.idle_gpus:
        return ok("GPU", "; ".join(_card(gpu) for gpu in machine.idle_gpus) + " (this torch cannot use it: see torch)")
    unreached = None if machine.gpus else _out_of_reach(findings, need)
    if unreached is not None:
        return unreached
    try:
        candidate_devices(findings.config, machine)
    except LlmctlError as error:
        return fault("GPU", error.message, error.hint, needed=need.cuda or "load.device_map names it")
    if machine.gpus:
        return ok("GPU", "; ".join(_card(gpu) for gpu in machine.gpus))
    if need.cuda:
        return fault("GPU", "no NVIDIA GPU was found", "--attn sdpa", needed=need.cuda)
    return ok("GPU", "none was found; models run on the CPU")


def _out_of_reach(findings: Findings, need: Need) -> Check | None:
    """Return the fault that hides a card from the driver; None if nothing indicates a hidden card."""
    driver, hidden = findings.driver, findings.computer.variables.get("CUDA_VISIBLE_DEVICES")
    if driver.error is not None:
        words, fix = _NVML_ERRORS.get(driver.error, (f"its library gives error {driver.error}", "nvidia-smi"))
        return _gpu_fault(findings, "GPU", f"NVIDIA's driver does not answer: {words}", fix, need)
    if hidden is not None and driver.version is not None:
        reason = f"CUDA_VISIBLE_DEVICES is '{hidden}', which hides all GPUs"
        return _gpu_fault(findings, "GPU", reason, "unset CUDA_VISIBLE_DEVICES", need)
    if driver.cards_on_bus and driver.version is None:
        reason = "an NVIDIA card is on the PCI bus, but NVIDIA's driver is not usable"
        fix = "install NVIDIA's driver; in a container: docker run --gpus all"
        return _gpu_fault(findings, "GPU", reason, fix, need)
    return None


def _card(gpu: Gpu) -> str:
    memory = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free"
    return f"{gpu.name}, {memory}" + (f", compute capability {_dotted(gpu.capability)}" if gpu.kind == "cuda" else "")


def _dtype(findings: Findings) -> Check:
    dtype, cards = findings.config.load.dtype, nvidia_cards(findings)
    on_cpu = findings.config.load.device_map == "cpu" or not (findings.machine and findings.machine.gpus)
    if dtype == "bfloat16" and not on_cpu:
        old = next((card for card in cards if card.capability < AMPERE), None)
        if old is not None:
            reason = f"{old.name} (compute capability {_dotted(old.capability)}) only emulates bfloat16, slowly"
            return warning("dtype", reason, "--dtype fp16")
    if dtype == "float16" and on_cpu:
        return warning("dtype", "most CPUs have no fast way to compute float16", "--dtype bf16")
    return ok("dtype", "chosen by llmctl" if dtype == "auto" else f"{dtype} is requested")


def _attention(findings: Findings) -> Check:
    """Check the conditions of FlashAttention-2, requested by name, that do not depend on the model."""
    load, cards = findings.config.load, nvidia_cards(findings)
    if load.attn_implementation != "flash_attention_2":
        return ok("attention", f"load.attn_implementation is {load.attn_implementation}")
    needed_by, sdpa = "load.attn_implementation names it", "--attn sdpa"
    if not cards:
        return fault("attention", "FlashAttention-2 runs on NVIDIA GPUs, but none was found", sdpa, needed=needed_by)
    if load.device_map in ("cpu", "mps"):
        reason = f"FlashAttention-2 runs on NVIDIA GPUs, but load.device_map is {load.device_map}"
        return fault("attention", reason, sdpa, needed=needed_by)
    old = next((card for card in cards if card.capability < AMPERE), None)
    if old is not None:
        reason = f"FlashAttention-2 needs compute capability 8.0 or more, but {old.name} has {_dotted(old.capability)}"
        return fault("attention", reason, sdpa, needed=needed_by)
    if load.dtype != "auto" and load.dtype not in FLASH_DTYPES:
        reason = f"FlashAttention-2 computes only in float16 and bfloat16, but {load.dtype} is requested"
        return fault("attention", reason, "--dtype bf16", needed=needed_by)
    return ok("attention", "flash_attention_2 is requested, and the GPU is new enough")


def _flash_attn(findings: Findings, need: Need) -> Check:
    if "flash_attn" in findings.trials:
        return package(findings, "flash_attn", needed=need.flash_attention)
    if need.flash_attention is None:
        return skipped("flash-attn", "not installed, and not needed: SDPA is used")
    install = "pip install --no-build-isolation flash-attn"
    if any(card.capability >= AMPERE for card in nvidia_cards(findings)):
        return fault("flash-attn", "not installed", install, needed=need.flash_attention)
    reason = f"not installed, and no GPU here can run it (for one that can: {install})"
    return fault("flash-attn", reason, "--attn sdpa", needed=need.flash_attention)


def _backend_package(findings: Findings, need: Need, backend: QuantBackend, required: BackendPackage) -> Check:
    needed = need.packages.get(required.name)
    broken = not_importable(findings, required.name, needed=needed)
    if broken is not None:
        return broken
    torch = findings.trials.get("torch")
    cuda = torch.facts.get("cuda") if torch is not None else None
    works = bool(torch is not None and torch.facts.get("cuda_works"))
    finding, remark = backend.examine(findings.trials[required.name].facts, cuda=cuda, cuda_works=works)
    if finding is None:
        return in_range(findings, required.name, needed=needed, about=remark)
    if finding.is_fault:
        return fault(required.name, finding.reason, finding.fix, needed=needed)
    return warning(required.name, finding.reason, finding.fix)


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
