"""Text from flags, files and standard input."""

import sys
from pathlib import Path

from llmctl.errors import UserError
from llmctl.platform_support import stdin_has_input


def read_text_file(path: Path, *, flag: str) -> str:
    """Return the text of a file, its line ends as they are.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{flag} {path}: {reason}") from error


def read_stdin() -> str:
    """Return all of standard input.

    Raises:
        UserError: it is not UTF-8 text.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError("standard input is not UTF-8 text") from error


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """Return the prompt: the flag's text, the file and standard input, joined by blank lines.

    Raises:
        UserError: there is none, or the file cannot be read.
    """
    parts = []
    if prompt is not None and prompt != "-":
        parts.append(prompt)
    if prompt_file is not None:
        parts.append(read_text_file(prompt_file, flag="--prompt-file").replace("\r\n", "\n"))
    if prompt == "-" or not sys.stdin.isatty():
        parts.append(read_stdin() if prompt == "-" or not parts or stdin_has_input() else "")
    text = "\n\n".join(part.rstrip("\n") for part in parts if part.strip())
    if not text:
        raise UserError("there is no prompt", hint="give --prompt TEXT, --prompt-file FILE, or text on standard input")
    return text
