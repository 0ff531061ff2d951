"""The exception tree and its exit codes.

Every error that a person can act on is an `LlmctlError`: it says what went wrong, where, and what to do next. Any other
exception that escapes is a bug and is reported as one (exit code 70).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_NO = 1  # it ran, but a check or some rows failed
EXIT_USER = 2
EXIT_MACHINE = 3
EXIT_REMOTE = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class LlmctlError(Exception):
    """An error that the user can act on.

    Args:
        message: The problem and its place. One sentence, no trailing full stop.
        hint: The next step, ideally a command to type.
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
    """Return the first line of an exception's text, or the name of its class if the text is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


class UserError(LlmctlError):
    """An error in a flag, a key, a prompt or the choice of a model."""

    exit_code = EXIT_USER
    kind = "user"


_TYPED = ("/set", "argument")


@dataclass(frozen=True)
class Problem:
    """A problem in a configuration.

    Attributes:
        where: Layer and, for a file, line: `llmctl.yaml:12` or `--set` or `LLMCTL_SEED`.
        key: Dotted path of the key, or an empty string for a file that is not YAML.
        message: Error, and a valid value.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"

    @property
    def is_typed(self) -> bool:
        """True for a flag or an argument of the command line, `/set` in chat, and a keyword in Python."""
        return self.where in _TYPED or self.where.startswith("--") or (self.where.isupper() and "_" not in self.where)


_EVERY_KEY = "every key with its value: llmctl config show --all"


class ConfigError(UserError):
    """All problems of a configuration at once."""

    kind = "config"

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        super().__init__(
            _report(problems),
            hint=hint or (_EVERY_KEY if any(map(_is_about_key, problems)) else None),
            details={
                "problems": [{"where": p.where, "key": p.key, "message": p.message} for p in problems],
            },
        )
        self.problems = tuple(problems)


def _is_about_key(problem: Problem) -> bool:
    """Return True for a problem with a key that the user wrote, rather than with a flag that stands for one."""
    return bool(problem.key) and (not problem.is_typed or problem.where.startswith("--set"))


def _report(problems: Sequence[Problem]) -> str:
    """Return the problems as text: one line for a single one of the command line, else a list under a heading."""
    are_typed = all(problem.is_typed for problem in problems)
    if are_typed and len(problems) == 1:
        [problem] = problems
        is_flag = problem.where.startswith("--") and not _is_about_key(problem)
        return f"{problem.where}: {problem.message}" if is_flag else str(problem)
    subject = "the command" if are_typed else "the configuration"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return f"{subject} has {len(problems)} problem{'s' if len(problems) != 1 else ''}:\n{lines}"


class ModelError(UserError):
    """Files of a model that are unsafe, incomplete, or of a kind that llmctl does not load."""

    kind = "model"


class MachineError(LlmctlError):
    """Something that this machine lacks: a package, a GPU, memory, disk space."""

    exit_code = EXIT_MACHINE
    kind = "machine"


class RemoteError(LlmctlError):
    """A refusal by the Hub, or a failure of the network."""

    exit_code = EXIT_REMOTE
    kind = "remote"


class UnreachableError(RemoteError):
    """No answer, or an answer that is not from the Hub."""

    kind = "unreachable"


class OfflineError(RemoteError):
    """A download is needed and forbidden."""

    kind = "offline"


class NotFoundError(RemoteError):
    """A repository, revision or file that does not exist, or that this token may not see."""

    kind = "not_found"


class GatedError(RemoteError):
    """A licence that is not accepted, or a request for access that is not granted."""

    kind = "gated"


class TokenError(RemoteError):
    """A token that is missing, wrong, or lacks a scope."""

    kind = "token"


class RateLimitedError(RemoteError):
    """A rate limit of the Hub that lasts longer than llmctl waits."""

    kind = "rate_limited"
