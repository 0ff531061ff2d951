"""Text from flags, files and standard input."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from llmctl.errors import UserError
from llmctl.platform_support import stdin_has_input
from llmctl.text_files import NotTextError, decode, encoding_of, read_text, reason

_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O.|.|$)", re.DOTALL)
_CONVERT = "save it as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8"


def read_text_file(path: Path, *, flag: str) -> str:
    """Return the text of a file, its line ends as they are.

    Raises:
        UserError: the file cannot be read, or is not text.
    """
    try:
        return read_text(path)
    except OSError as error:
        raise UserError(f"{flag} {path}: {reason(error)}") from error
    except NotTextError as error:
        raise UserError(f"{flag} {path}: {reason(error)}", hint=_CONVERT) from error


def read_stdin() -> str:
    """Return all of standard input, with `\\n` as line ends.

    Raises:
        UserError: it is not text.
    """
    return _as_text(stdin_bytes().read()).replace("\r\n", "\n")


def stdin_bytes() -> BinaryIO:
    """Return standard input as a stream of bytes.

    Raises:
        UserError: it cannot be read, such as a file that is open for writing only.
    """
    try:
        os.read(sys.stdin.fileno(), 0)
    except OSError as error:
        raise UserError(
            f"standard input cannot be read: {error.strerror or error}", hint="give the text with < FILE or a pipe"
        ) from error
    return sys.stdin.buffer


def stdin_lines() -> Iterator[str]:
    """Yield the lines of standard input as they arrive, without their ends.

    Raises:
        UserError: a line is not text.
    """
    for number, line in enumerate(stdin_bytes()):
        if not number and (encoding := encoding_of(line)) not in ("utf-8", "utf-8-sig"):
            raise UserError(f"standard input is {encoding.upper()} text; lines are read as UTF-8", hint=_CONVERT)
        yield _as_text(line).rstrip("\r\n")


def _as_text(data: bytes) -> str:
    """Return the text that came through standard input: UTF-8, or what the environment says (PYTHONIOENCODING)."""
    try:
        return decode(data)
    except NotTextError as error:
        declared = sys.stdin.encoding.lower()
        if declared not in ("utf-8", "ascii") and b"\0" not in data:
            with suppress(UnicodeDecodeError):
                return data.decode(declared)
        raise UserError(f"standard input: {reason(error)}", hint=_CONVERT) from error


def read_prompt(prompt: str | None, prompt_file: Path | None, *, reads_stdin: bool = True) -> str:
    """Return the prompt: the flag's text, the file and standard input, joined by blank lines.

    Args:
        reads_stdin: False if something else is read from standard input.

    Raises:
        UserError: there is none, or the file cannot be read.
    """
    parts = []
    if prompt is not None and prompt != "-":
        parts.append(prompt)
    if prompt_file is not None:
        parts.append(read_text_file(prompt_file, flag="--prompt-file").replace("\r\n", "\n"))
    if reads_stdin and (prompt == "-" or not sys.stdin.isatty()):
        parts.append(read_stdin() if prompt == "-" or not parts or stdin_has_input() else "")
    text = "\n\n".join(part.rstrip("\n") for part in parts if part.strip())
    if not text:
        further = ", or text on standard input" if reads_stdin else ": standard input is the image"
        raise UserError("there is no prompt", hint=f"give a PROMPT or --prompt-file FILE{further}")
    return text


def typed_text(keys: bytes) -> str:
    """Return the text that keys have typed. Arrow keys and other commands are left out; backspace and Ctrl-U erase."""
    text = ""
    for character in _ESCAPE_SEQUENCE.sub("", keys.decode("utf-8", "replace")):
        if character in "\x08\x7f":
            text = text[:-1]
        elif character == "\x15":
            text = text[: text.rfind("\n") + 1]
        elif character in "\r\n":
            text += "\n"
        elif character.isprintable() or character == "\t":
            text += character
    return text.strip("\n")
