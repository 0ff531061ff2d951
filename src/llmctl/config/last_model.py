"""The model that was last downloaded or chosen, remembered between commands."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from llmctl.errors import MachineError
from llmctl.paths import state_dir, write_atomically


@dataclass(frozen=True)
class CurrentModel:
    """The model that commands use when none is named.

    Attributes:
        model: A Hub id or the absolute path of a folder.
        revision: A branch, tag or commit; None for the default branch.
        how: The command that set it.
        when: The time in UTC, ISO 8601.
    """

    model: str
    revision: str | None
    how: Literal["download", "use"]
    when: str


def _file() -> Path:
    return state_dir() / "current_model.json"


def current_model() -> CurrentModel | None:
    """Return the remembered model, or None. An unreadable file is ignored, because the file is only a convenience."""
    try:
        return CurrentModel(**json.loads(_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def remember_model(model: str, *, revision: str | None = None, how: Literal["download", "use"]) -> CurrentModel:
    """Make `model` the one that commands use when none is named.

    Raises:
        MachineError: the folder of llmctl's state cannot be written.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    current = CurrentModel(model=model, revision=revision, how=how, when=when)
    file = _file()
    try:
        write_atomically(file, json.dumps(asdict(current), indent=2) + "\n")
    except OSError as error:
        raise MachineError(
            f"the choice cannot be stored in {file.parent}: {error.strerror}",
            hint=f"name it each time (--model {model}), or point LLMCTL_HOME to a folder that you may write to",
        ) from error
    return current


def forget_model() -> None:
    """Return to the small default model."""
    file = _file()
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot remove {file}: {error.strerror}", hint="correct its owner (chown)") from error
