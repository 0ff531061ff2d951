"""Checks of disk, memory, processor and limits. Pure."""

from collections.abc import Iterator

from llmctl.doctor.findings import BASE_ADDRESS_BYTES, OWN_KERNELS, Check, Findings, fault, ok, skipped, warning
from llmctl.doctor.need import Need
from llmctl.errors import LlmctlError
from llmctl.plan import Plan
from llmctl.units import format_bytes

LITTLE_DISK_BYTES = 5_000_000_000
LITTLE_RAM_BYTES = 2_000_000_000
FEW_FILES = 1024
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "bf16": "BF16",
}
# The values that the tokenizers library treats as false.
_NO = frozenset({"", "off", "false", "f", "no", "n", "0"})


def check_computer(findings: Findings, need: Need, plan: Plan | LlmctlError | None) -> Iterator[Check]:
    """Check the resources of this computer and the limits on them."""
    yield _cache(findings, need)
    yield _memory(findings)
    yield _container(findings)
    yield _address_space(findings, need, plan)
    yield _cpu(findings)
    yield _cpu_kernels(findings)
    yield _threads(findings)
    yield _open_files(findings)
    yield _tokenizers_parallelism(findings)


def _cache(findings: Findings, need: Need) -> Check:
    disk, hub = findings.disk, findings.hub
    if disk is None:
        return skipped("cache folder", "not checked")
    elsewhere = "export HF_HOME=FOLDER   (a folder that you may write to)"
    if disk.obstacle == "full":
        reason = f"the disk of {disk.folder} is full: {format_bytes(disk.free_bytes)} free"
        return fault("cache folder", reason, "llmctl models prune", needed=need.download)
    if disk.obstacle is not None:
        reason = f"nothing can be written to {disk.folder}: {disk.message}"
        return fault("cache folder", reason, elsewhere, needed=need.download)
    wanted = hub.download_bytes if hub is not None else None
    text = f"{disk.folder} is writable, {format_bytes(disk.free_bytes)} free"
    text += "" if disk.has_links else ", without symbolic links"
    if wanted is not None and wanted > disk.free_bytes:
        reason = f"{text}, but {hub.wanted if hub else 'the model'} takes {format_bytes(wanted)}"
        return fault("cache folder", reason, "llmctl models prune", needed=need.download)
    if disk.free_bytes < LITTLE_DISK_BYTES:
        return warning("cache folder", f"{text}: little for a model", "llmctl models prune")
    return ok("cache folder", text)


def _memory(findings: Findings) -> Check:
    machine, swap = findings.machine, findings.computer.swap_bytes
    if machine is None:
        return skipped("memory", "psutil is broken")
    free, total = machine.ram_available_bytes, machine.ram_total_bytes
    text = f"{format_bytes(free)} of {format_bytes(total)} RAM free, " + (
        f"{format_bytes(swap)} swap" if swap else "no swap"
    )
    if free < LITTLE_RAM_BYTES:
        return warning("memory", f"{text}: little for a model", "close other programs")
    return ok("memory", text)


def _container(findings: Findings) -> Check:
    limit = findings.computer.container_limit_bytes
    if limit is None:
        return ok("container limit", "none (cgroup v2)")
    if limit < 2 * LITTLE_RAM_BYTES:
        reason = f"the container may use {format_bytes(limit)} of memory: little for a model"
        return warning("container limit", reason, "start it with more memory: docker run --memory 16g")
    return ok("container limit", f"the container may use {format_bytes(limit)} of memory")


def _address_space(findings: Findings, need: Need, plan: Plan | LlmctlError | None) -> Check:
    """Check RLIMIT_AS, which limits all mapped memory, including weight files and, for CUDA, GPU memory."""
    limit = findings.computer.address_limit_bytes
    if limit is None:
        return ok("address space", "no limit (ulimit -v)")
    text, fix = f"ulimit -v allows {format_bytes(limit)}", "ulimit -v unlimited"
    planned = plan.memory.total_bytes if isinstance(plan, Plan) else 0
    wanted = BASE_ADDRESS_BYTES + planned
    if need.cuda and findings.machine is not None:
        wanted += sum(gpu.total_bytes for gpu in findings.machine.gpus)
    if wanted > limit:
        reason = f"{text}, but loading this model maps about {format_bytes(wanted)}"
        return fault("address space", reason, fix, needed="the model is loaded in one process")
    return warning("address space", f"{text} for all mapped memory, including weights", fix)


def _cpu(findings: Findings) -> Check:
    machine, name = findings.machine, findings.computer.cpu_name or "the processor"
    if machine is None:
        return skipped("CPU", "psutil is broken")
    has = [text for feature, text in _FEATURES.items() if feature in machine.cpu_features]
    lacks = [
        text for feature, text in _FEATURES.items() if feature in _wanted(machine.architecture) and text not in has
    ]
    text = f"{name}, {machine.physical_cores} cores"
    if machine.system != "Linux":
        return ok("CPU", f"{text}, {machine.architecture}")
    text += f": {', '.join(has) or 'none of the fast instructions'}" + (f" (no {', '.join(lacks)})" if lacks else "")
    if machine.architecture in ("x86_64", "AMD64") and "avx2" not in machine.cpu_features:
        return warning("CPU", f"{text}: models run many times slower without AVX2")
    return ok("CPU", text)


def _cpu_kernels(findings: Findings) -> Check:
    """Check llmctl's own compiled kernels."""
    trial = findings.trials.get(OWN_KERNELS)
    if trial is None:
        return skipped("CPU kernels", "not checked")
    isa = trial.facts.get("isa")
    if isa == "portable":
        return ok("CPU kernels", "in use, without vector instructions: this processor has none that they support")
    if isa:
        return ok("CPU kernels", f"in use, for {isa}")
    reason = trial.facts.get("missing") or f"loading them fails ({trial.error})"
    if findings.machine is not None and findings.machine.gpus:
        return skipped("CPU kernels", f"{reason}; models on a GPU need none")
    fix = "pip install --force-reinstall --no-deps --no-cache-dir llmctl-hf   (with a C++ compiler on the PATH)"
    lost = "models on the CPU are slower: 4 and 8 bits use torch's packed kernels and cannot be cached or saved"
    return warning("CPU kernels", f"{reason}; {lost}", fix)


def _wanted(architecture: str) -> tuple[str, ...]:
    if architecture in ("x86_64", "AMD64"):
        return ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return ("asimd", "bf16") if architecture in ("aarch64", "arm64") else ()


def _threads(findings: Findings) -> Check:
    machine, computer = findings.machine, findings.computer
    torch = findings.trials.get("torch")
    threads = torch.facts.get("threads") if torch is not None else None
    if machine is None or threads is None:
        return skipped("threads", "torch could not be asked")
    cores = min(machine.physical_cores, computer.usable_cores)
    variable = computer.variables.get("OMP_NUM_THREADS")
    text = f"torch computes with {threads} threads on {cores} cores that this process may use"
    text += f" (OMP_NUM_THREADS={variable})" if variable else ""
    if threads > cores:
        return warning("threads", f"{text}: they wait for each other", f"export OMP_NUM_THREADS={cores}")
    if threads < cores:
        fix = "unset OMP_NUM_THREADS" if variable else f"export OMP_NUM_THREADS={cores}"
        return warning("threads", f"{text}: cores stay idle", fix)
    return ok("threads", text)


def _open_files(findings: Findings) -> Check:
    limit = findings.computer.file_limit
    if limit is not None and limit < FEW_FILES:
        return warning(
            "open files", f"a process may open {limit} files: too few for a model in many files", "ulimit -n 4096"
        )
    return ok("open files", f"a process may open {limit} files" if limit is not None else "no limit")


def _tokenizers_parallelism(findings: Findings) -> Check:
    value = findings.computer.variables.get("TOKENIZERS_PARALLELISM")
    if value is not None and value.lower() in _NO:
        reason = f"TOKENIZERS_PARALLELISM={value}: tokenising many prompts uses one core only"
        return warning("tokenizers parallelism", reason, "unset TOKENIZERS_PARALLELISM")
    return ok("tokenizers parallelism", f"TOKENIZERS_PARALLELISM={value}" if value else "on (nothing is set)")
