"""Marks: fixed texts that separate the parts of an answer."""

from collections.abc import Sequence

# Characters of the private use area that stand in a fixed text for what the model chooses: an id, a number, the type of
# a value, and the name of a tool.
ID, INDEX, TYPE, NAME = "\ue000", "\ue001", "\ue002", "\ue003"


def first_of(text: str, marks: Sequence[str], start: int = 0) -> tuple[int, str | None]:
    """Return the position and the text of the first mark in a text from `start`; None if there is none."""
    present = [(at, mark) for mark in marks if (at := text.find(mark, start)) >= 0]
    return min(present) if present else (len(text), None)


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that could be the beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)


class ObjectScanner:
    """Finds the end of a JSON object or list in text that arrives in pieces.

    Its state: the nesting depth, and a flag for being after a backslash.

    Attributes:
        is_in_string: True within a string.
        is_whole: True after the end of the value.
    """

    def __init__(self) -> None:
        self._depth, self._escaped = 0, False
        self.is_in_string = self.is_whole = False

    @property
    def is_open(self) -> bool:
        """True within the value."""
        return self._depth > 0

    def take(self, text: str) -> int:
        """Return the number of characters of `text` that belong to the value."""
        for position, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self.is_in_string:
                self._escaped, self.is_in_string = character == "\\", character != '"'
            elif character == '"':
                self.is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_whole = True
                    return position + 1
        return len(text)
