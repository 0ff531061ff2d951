"""The model that was last downloaded or chosen, remembered between commands."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

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
    """Make `model` the one that commands use when none is named."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    current = CurrentModel(model=model, revision=revision, how=how, when=when)
    write_atomically(_file(), json.dumps(asdict(current), indent=2) + "\n")
    return current


def forget_model() -> None:
    """Return to the small default model."""
    _file().unlink(missing_ok=True)
