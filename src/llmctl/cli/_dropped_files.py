"""Images that are dropped on a terminal or pasted: their paths at the beginning of a message."""

import re
from contextlib import suppress
from pathlib import Path

from llmctl.errors import UserError
from llmctl.generation.image_input import path_of_file_url
from llmctl.paths import expand

_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"
}  # fmt: skip
_WORD = re.compile(r"(?:\\.|[^\s\\])+")
_ESCAPE = re.compile(r"\\(.)")


def leading_images(text: str) -> tuple[list[Path], str]:
    """Return the image files at the beginning of a message, and the rest of its text.

    Terminals write the path of a dropped file in quotes, with backslashes before blanks, as it is, or as a file:// URL.
    A path counts if the file exists and has the suffix of an image. A blank before it makes it text.
    """
    files: list[Path] = []
    if text[:1].isspace():
        return files, text
    rest = text.strip()
    while rest:
        if (whole := _image_file(rest)) is not None:
            return [*files, whole], ""
        word, after = _first_word(rest)
        if (file := _image_file(word)) is None:
            break
        files.append(file)
        rest = after.lstrip()
    return files, rest if files else text


def _first_word(text: str) -> tuple[str, str]:
    """Divide a text after its first word, or after the quotes that it begins with."""
    if text[0] in "'\"" and (end := text.find(text[0], 1)) > 0:
        return text[: end + 1], text[end + 1 :]
    word = _WORD.match(text)
    return (word[0], text[word.end() :]) if word else (text, "")


def _image_file(written: str) -> Path | None:
    """Return the image file that a text names in one of the ways of terminals, or None."""
    quoted = written[1:-1] if len(written) > 1 and written[0] == written[-1] and written[0] in "'\"" else written
    for text in (quoted, _ESCAPE.sub(r"\1", quoted)):
        with suppress(OSError, ValueError, UserError):
            path = expand(path_of_file_url(text) if text.startswith("file://") else text)
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                return path
    return None
