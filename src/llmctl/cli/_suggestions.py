"""Errors for names that are no flag or command here, with the right name: first that of the table of synonyms."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from llmctl.cli._flag import Flag
from llmctl.cli._flags import FLAGS, MODEL_ARGUMENT, SET, flag_of
from llmctl.errors import UserError
from llmctl.synonyms import COMMAND_ADVICE, COMMANDS, find_synonym


def unknown_flag(name: str, flags: Sequence[Flag[Any]], command: str) -> UserError:
    """Return the error for a flag that a command does not have."""
    hint = _instead(name, flags, command) or _similar(name, (part for flag in flags for part in _long_names(flag)))
    return UserError(f"No such option: {name}", hint=hint or f"see: {command} --help")


def _long_names(flag: Flag[Any]) -> list[str]:
    return [] if flag.is_argument or flag.is_hidden else [name for name in flag.spellings if name.startswith("--")]


def _instead(name: str, flags: Sequence[Flag[Any]], command: str) -> str | None:
    """Return what to type instead of a flag that other tools or other commands have."""
    longs = {flag.long for flag in flags}
    if name.startswith("--gguf"):
        from llmctl.model.checkpoint import GGUF_HINT

        return f"llmctl does not read GGUF; {GGUF_HINT}"
    if name in ("--model", "-m") and any(flag.long == "MODEL" for flag in flags):
        return f"give the model without a flag: {command} MODEL"
    synonym = find_synonym(name)
    if synonym is not None and synonym.advice:
        return f"instead: {synonym.advice}"
    row = next((flag for flag in FLAGS if name in flag.spellings and flag.key), None)
    key = synonym.key if synonym is not None else row.key if row is not None else None
    if key is None:
        return None
    value = (synonym.value if synonym is not None else None) or "VALUE"
    flag = flag_of(key)
    if flag is not None and flag.long in longs:
        return f"did you mean {flag.long}{'' if value == 'VALUE' else f' {value}'}?"
    return f"instead: --set {key}={value}" if SET.long in longs else None


def unknown_command(name: str, commands: Iterable[str]) -> UserError:
    """Return the error for a command that does not exist."""
    if advice := COMMAND_ADVICE.get(name):
        hint: str | None = f"instead: {advice}"
    elif "/" in name and not name.startswith("/"):
        hint = f"to use a model: llmctl run {name}"
    elif any(character.isspace() for character in name):
        hint = "to answer a prompt: llmctl generate PROMPT"
    else:
        hint = _similar(name, (*commands, *COMMANDS))
    return UserError(f"No such command: {name}", hint=hint or "see: llmctl --help")


def surplus_argument(flags: Sequence[Flag[Any]], command: str) -> str:
    """Return the hint for more arguments than a command takes."""
    if any(flag.long == "PROMPT" for flag in flags):
        model = "" if MODEL_ARGUMENT in flags else "; for another model: llmctl run MODEL PROMPT"
        return f"put a prompt of several words in quotation marks{model}"
    return f"see: {command} --help"


def _similar(name: str, known: Iterable[str]) -> str | None:
    close = get_close_matches(name, list(dict.fromkeys(known)), n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else None
