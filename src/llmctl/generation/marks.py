"""Marks: fixed texts that separate the parts of an answer."""

import re
from collections.abc import Sequence

# Characters of the private use area that stand in a fixed text for what the model chooses: an id, a number, the type of
# a value, and the name of a tool.
ID, INDEX, TYPE, NAME = "\ue000", "\ue001", "\ue002", "\ue003"


def first_of(text: str, marks: Sequence[str]) -> tuple[int, str | None]:
    """Return the position and the text of the first mark in a text; None if there is none."""
    present = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(present) if present else (len(text), None)


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that could be the beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)


def is_open_json(text: str) -> bool:
    """Return True if a text may be the beginning of a JSON object or list that is not complete."""
    if not text.strip():
        return True
    if text.lstrip()[0] not in "[{":
        return False
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text, flags=re.DOTALL)
    if bare.count('"') % 2:  # within a string
        return True
    depth = 0
    for character in re.sub(r"[^\[\]{}]", "", bare):
        depth += 1 if character in "[{" else -1
        if depth == 0:
            return False
    return True
