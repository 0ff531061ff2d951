"""The exception tree and its exit codes.

Every error that a person can act on is an `LlmctlError`: what went wrong, where, and what to do next. Anything else
that escapes is a bug and is reported as one (exit code 70).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_NO = 1  # ran, and the answer is no
EXIT_USER = 2
EXIT_MACHINE = 3
EXIT_REMOTE = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class LlmctlError(Exception):
    """An error for the person at the keyboard.

    Args:
        message: What went wrong, and where. One sentence, no trailing full stop.
        hint: What to do next, ideally a command to type.
        details: Facts for `--json`: numbers, paths, ids. Never a secret.
    """

    exit_code: ClassVar[int] = EXIT_BUG
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}


def first_line(error: BaseException, *, limit: int = 300) -> str:
    """Return the first line of an exception's text, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


class UserError(LlmctlError):
    """A flag, a key, a prompt or the choice of a model has to change."""

    exit_code = EXIT_USER
    kind = "user"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a configuration.

    Attributes:
        where: The layer and, for a file, the line: `llmctl.yaml:12` or `--set` or `LLMCTL_SEED`.
        key: The dotted path of the key, or an empty string for a file that cannot be read as YAML at all.
        message: What is wrong with it, and what would be right.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class ConfigError(UserError):
    """All the problems of a configuration at once."""

    kind = "config"

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        count = len(problems)
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(
            f"the configuration has {count} problem{'s' if count != 1 else ''}:\n{lines}",
            hint=hint or ("every key with its meaning: llmctl config init" if any(p.key for p in problems) else None),
            details={
                "problems": [{"where": p.where, "key": p.key, "message": p.message} for p in problems],
            },
        )
        self.problems = tuple(problems)


class ModelError(UserError):
    """The files of the model cannot be used: unsafe, incomplete, or of a kind that llmctl does not load."""

    kind = "model"


class MachineError(LlmctlError):
    """This machine lacks something: a package, a GPU, memory, disk."""

    exit_code = EXIT_MACHINE
    kind = "machine"


class RemoteError(LlmctlError):
    """The Hub, or the way to it, says no."""

    exit_code = EXIT_REMOTE
    kind = "remote"


class UnreachableError(RemoteError):
    """No answer, or an answer that is not the Hub's."""

    kind = "unreachable"


class OfflineError(RemoteError):
    """Something has to be fetched, and fetching was forbidden."""

    kind = "offline"


class NotFoundError(RemoteError):
    """No such repository, revision or file, or none that this token may see."""

    kind = "not_found"


class GatedError(RemoteError):
    """The repository's licence has to be accepted, or the request for access has not been granted."""

    kind = "gated"


class TokenError(RemoteError):
    """The token is missing, wrong, or lacks a scope."""

    kind = "token"


class RateLimitedError(RemoteError):
    """The Hub asks to wait, longer than llmctl was ready to."""

    kind = "rate_limited"
