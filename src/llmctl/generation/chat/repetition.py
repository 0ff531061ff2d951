"""The detection of an answer that repeats itself without end."""

_TAIL = 2400  # characters that are examined
_STEP = 64  # new characters between two examinations
# A text of one character, such as a rule, and a list of similar lines repeat too: both limits are far beyond these.
_MIN_REPEATED = 600  # characters that only repeat
_MIN_REPEATS = 6


class LoopGuard:
    """Detects a loop in a text that grows. Its state: the end of the text."""

    def __init__(self) -> None:
        self._tail = ""
        self._new = 0

    def add(self, text: str) -> bool:
        """Add text. Return True if the text ends in a loop."""
        self._tail = (self._tail + text)[-_TAIL:]
        self._new += len(text)
        if self._new < _STEP or len(self._tail) < _MIN_REPEATED:
            return False
        self._new = 0
        return repeated_unit(self._tail) is not None


def repeated_unit(text: str) -> str | None:
    """Return the text whose repetition fills the end of `text`, or None."""
    reverse = text[::-1]
    borders = [0] * len(reverse)  # of each prefix, the longest proper prefix that is also its suffix
    for at in range(1, len(reverse)):
        border = borders[at - 1]
        while border and reverse[at] != reverse[border]:
            border = borders[border - 1]
        borders[at] = border + 1 if reverse[at] == reverse[border] else 0
    for length in range(_MIN_REPEATED, len(reverse) + 1):
        period = length - borders[length - 1]
        if period * _MIN_REPEATS <= length:
            return text[-period:]
    return None
