"""Errors for names that are no flag or command here, with the right name: first that of the table of synonyms."""

import re
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from llmctl.cli._flag import Flag
from llmctl.cli._flags import FLAGS, MODEL_ARGUMENT, SET, flag_of
from llmctl.errors import UserError
from llmctl.synonyms import COMMAND_ADVICE, COMMANDS, find_synonym, normalized

_JOINED = re.compile("-[A-Za-z][A-Za-z0-9]+")
_LONGEST_REST = 100  # characters of a command line that a hint repeats
_MOST_SUGGESTIONS = 3
_EVERY_COMMAND = "every command: llmctl --help"


def unknown_flag(name: str, flags: Sequence[Flag[Any]], command: str, *, typed: Sequence[str] = ()) -> UserError:
    """Return the error for a flag that a command does not have.

    Args:
        typed: The whole command line, from which a hint takes the value of the flag.
    """
    name = _whole_word(name, typed)
    value = _value_of(name, typed)
    longs = [long for flag in flags for long in _long_names(flag)]
    hint = _instead(name, flags, command, value) or _similar(name, longs) or _begun_with(name, longs)
    return UserError(f"No such option: {name}", hint=hint or f"see: {command} --help")


def check_single_dash(arguments: Sequence[str], flags: Sequence[Flag[Any]], command: str) -> None:
    """Raise UserError for a name such as `-ngl` of llama.cpp, which would be read as `-n gl`."""
    takes_value = {name for flag in flags if flag.metavar is not None for name in flag.spellings}
    for before, word in pairwise(("", *arguments)):
        if word == "--":
            return
        if _JOINED.fullmatch(word) and before not in takes_value and find_synonym(word) is not None:
            raise unknown_flag(word, flags, command, typed=arguments)


def misplaced_flag(name: str, commands: Iterable[str], *, typed: Sequence[str]) -> UserError:
    """Return the error for a flag that stands where the command belongs.

    Args:
        typed: The whole command line, which the hint repeats in the right order.
    """
    flag = next((flag for flag in FLAGS if name in (*flag.spellings, *flag.aliases())), None)
    synonym = find_synonym(name)
    named = [word for word in typed if word in set(commands)][:1]
    if name == "-v" and not named:
        hint = "the version: llmctl --version; the flag goes after a command: llmctl load -v"
    elif flag is not None:
        default = "load" if flag.group == "Output" else "generate"
        rest = shlex.join(word for word in typed if word not in named)
        shown = rest if len(rest) <= _LONGEST_REST else f"{name} ..."
        hint = f"the command goes first: llmctl {named[0] if named else default} {shown}"
    elif synonym is not None:
        hint = f"instead: {synonym.instead()}"
    else:
        hint = "see: llmctl --help"
    return UserError(f"No such option: {name}", hint=hint)


def _begun_with(name: str, longs: Sequence[str]) -> str | None:
    """Return the flags that begin with a letter that is none: `--plot` and `--prompt-tokens` for `-p`."""
    close = [long for long in longs if len(name) == 2 and long.startswith(f"-{name}")]
    return f"did you mean {' or '.join(close)}?" if 0 < len(close) <= _MOST_SUGGESTIONS else None


def _whole_word(name: str, typed: Sequence[str]) -> str:
    """Return the word in which a letter was taken for a flag: `-q4` for `-4`."""
    if len(name) != 2 or name in typed:
        return name
    return next((word for word in typed if _JOINED.fullmatch(word) and name[1] in word), name)


def _value_of(name: str, typed: Sequence[str]) -> str:
    """Return the value that was typed after a flag, else `VALUE`."""
    for word, following in pairwise((*typed, "-")):
        written, equals, value = word.partition("=")
        if written.startswith("-") and normalized(written) == normalized(name):
            return value if equals else "VALUE" if following.startswith("-") else following
    return "VALUE"


def _long_names(flag: Flag[Any]) -> list[str]:
    return [] if flag.is_argument or flag.is_hidden else [name for name in flag.spellings if name.startswith("--")]


def _instead(name: str, flags: Sequence[Flag[Any]], command: str, value: str) -> str | None:
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
    key = synonym.key if synonym is not None else _key_of(name)
    if key is None:
        return None
    fixed = synonym.value if synonym is not None else None
    flag = flag_of(key)
    if flag is not None and flag.long in longs:
        return f"did you mean {flag.long}{'' if fixed is None else f' {fixed}'}?"
    return f"instead: --set {shlex.quote(f'{key}={fixed or value}')}" if SET.long in longs else None


def _key_of(name: str) -> str | None:
    """Return the configuration key that a flag sets, or whose last part a flag is named after."""
    from llmctl.config.schema import all_keys

    row = next((flag for flag in FLAGS if name in flag.spellings and flag.key), None)
    leaf = normalized(name)
    return row.key if row is not None else next((key for key in all_keys() if key.rpartition(".")[2] == leaf), None)


def unknown_command(name: str, commands: Iterable[str], *, group: str = "", top: Iterable[str] = ()) -> UserError:
    """Return the error for a command that does not exist.

    Args:
        group: The name of the command that it would be a subcommand of.
        top: The commands beside that one.
    """
    shown = f"{group} {name}".lstrip()
    if advice := COMMAND_ADVICE.get(shown):
        hint: str | None = f"instead: {advice}"
    elif group and name in top:
        hint = f"instead: llmctl {name}"
    elif group and name in COMMANDS:
        hint = f"instead: llmctl {' '.join(COMMANDS[name])}"
    elif group:
        hint = _similar(name, commands) or f"see: llmctl {group} --help"
    elif "/" in name and not name.startswith("/"):
        hint = f"to use a model: llmctl run {name}"
    elif any(character.isspace() for character in name):
        hint = "to answer a prompt: llmctl generate PROMPT"
    else:
        hint = _similar(name, (*commands, *COMMANDS)) or f"{_EVERY_COMMAND}; a prompt: llmctl generate {name}"
    return UserError(f"No such command: {shown}", hint=hint)


def surplus_argument(flags: Sequence[Flag[Any]], command: str) -> str:
    """Return the hint for more arguments than a command takes."""
    if any(flag.long == "PROMPT" for flag in flags):
        model = "" if MODEL_ARGUMENT in flags else "; for another model: llmctl run MODEL PROMPT"
        return f"put a prompt of several words in quotation marks{model}"
    if any(flag.long == "--include" for flag in flags):
        return "for certain files of the model: --include PATTERN"
    return f"see: {command} --help"


def _similar(name: str, known: Iterable[str]) -> str | None:
    close = get_close_matches(name, list(dict.fromkeys(known)), n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else None
