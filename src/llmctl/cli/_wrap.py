"""Word wrap: of text that streams to a terminal, and of whole texts.

A piece of a stream may end within a word, so the last word is held back until it is complete, except where it could
not move to another line anyway. A word wider than a line is never broken here: the terminal folds it, so that a URL can
still be copied. Lines between fences (```), which are code, stay as they are.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unicodedata import category, east_asian_width

_TAB = 8
_NOT_FIRST = frozenset("、。，．：；！？）」』】〉》〕］｝・ー…‥々ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ,.;:!?)]}%’”")
_NOT_LAST = frozenset("（「『【〈《〔［｛([{‘“")
_JOINER = "\u200d"
_ZERO_WIDTH = ("Mn", "Me", "Cf")
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_MARKER = re.compile(r"[-*+•▏]|\d{1,3}[.)]")  # the first word of an item of a list, or of a quotation
_FENCES = ("```", "~~~")
# The command of a hint, which is to be copied. A sentence that begins with its name ends at a comma or a parenthesis.
_COMMAND = re.compile(r"(?:^|(?<=: ))(?:llmctl|pip)(?: (?!\(|(?:and|or) )\S*[^\s,;:](?=[,;:]?(?:\s|$)))+(?P<space> ?)")


def character_width(character: str) -> int:
    """Return the number of terminal columns of a character."""
    if character < "\u0300":  # the common case
        return 0 if character < " " or "\x7f" <= character < "\xa0" else 1
    if category(character) in _ZERO_WIDTH or ord(character) in _SKIN_TONES:
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def text_width(text: str) -> int:
    """Return the number of terminal columns of a text without line breaks."""
    return sum(map(character_width, text))


class Styled(NamedTuple):
    """Text and the name of its style; empty for none."""

    text: str
    style: str = ""


class WordWrap:
    """Wraps a stream of styled text. Its state: the place on the current line, and what is held back.

    Args:
        width: Returns the columns of the terminal, which may change at any time.
        indent: Spaces before the lines after a break.
    """

    def __init__(self, width: Callable[[], int], *, indent: int = 0) -> None:
        self._terminal_width, self._indent = width, indent
        self._width = max(width(), 1)
        self._word: list[Styled] = []
        self._space: list[Styled] = []
        self._word_width = self._space_width = 0
        self._is_in_code = False
        self._begin_line()

    def add(self, text: str, style: str = "") -> Iterator[Styled]:
        """Add text and yield what can be shown now."""
        shown: list[Styled] = []
        for character in text:
            shown += self._add(character, style)
        if not self._can_move or self._word_width > self._width:
            shown += self._take_word()
        yield from _joined(shown)

    def flush(self) -> Iterator[Styled]:
        """Yield what is held back."""
        yield from _joined([*self._take_word(), *self._take_space()])

    def _begin_line(self) -> None:
        self._column = self._line_start = 0
        self._hang = Styled(" " * self._indent)
        self._first_word, self._is_in_first_word = "", True
        self._previous = ""
        self._is_begun = False  # the beginning of the current word is on the screen

    @property
    def _can_move(self) -> bool:
        """True if the current word may go to the next line, and would begin further left there."""
        at_start = self._column + self._space_width <= self._line_start
        return not (self._is_begun or at_start or self._is_in_code)

    def _add(self, character: str, style: str) -> Iterator[Styled]:
        if character == "\n":
            yield from self._take_word()
            self._space, self._space_width = [], 0
            if self._first_word.startswith(_FENCES):
                self._is_in_code = not self._is_in_code
            self._begin_line()
            yield Styled("\n", style)
        elif character in " \t":
            yield from self._take_word()
            self._is_begun, self._previous = False, ""
            self._space.append(Styled(character, style))
            at = self._column + self._space_width
            self._space_width += _TAB - at % _TAB if character == "\t" else 1
            yield from self._after_first_word()
        else:
            if self._breaks_before(character):
                yield from self._take_word()
                self._is_begun = False
            self._word.append(Styled(character, style))
            self._word_width += character_width(character)
            self._previous = character

    def _breaks_before(self, character: str) -> bool:
        """Return True if a line may end between the previous character and this one, which is not a space."""
        before = self._previous
        if not before or before == _JOINER or not character_width(character):
            return False
        if character in _NOT_FIRST or before in _NOT_LAST:
            return False
        return _is_ideograph(character) or _is_ideograph(before)

    def _after_first_word(self) -> Iterator[Styled]:
        """Set the indentation of the next lines: that of this line, or the text after the marker of a list."""
        if not self._is_in_first_word:
            return
        if not self._first_word:
            yield from self._take_space()
            self._line_start, self._hang = self._column, Styled(" " * (self._column + self._indent))
            return
        self._is_in_first_word = False
        if _MARKER.fullmatch(self._first_word):
            self._line_start = self._column + 1
            self._hang = Styled("▏ ", "dim") if self._first_word == "▏" else Styled(" " * self._line_start)

    def _take_word(self) -> Iterator[Styled]:
        """Yield the current word, on a new line if it does not fit."""
        if not self._word:
            return
        self._follow_resize()
        if not self._is_begun:
            if self._column + self._space_width + self._word_width > self._width and self._can_move:
                hang = self._hang if len(self._hang.text) <= self._width // 2 else Styled("")
                yield from (Styled("\n"), hang)
                self._column = self._line_start = len(hang.text)
                self._space, self._space_width = [], 0
                self._is_in_first_word = False
            yield from self._take_space()
        if self._is_in_first_word:
            self._first_word += "".join(part.text for part in self._word)
        yield from self._word
        self._move(self._word_width)
        self._word, self._word_width = [], 0
        self._is_begun = True

    def _take_space(self) -> Iterator[Styled]:
        yield from self._space
        self._move(self._space_width)
        self._space, self._space_width = [], 0

    def _move(self, columns: int) -> None:
        """Advance on the line, which the terminal folds at its edge."""
        self._column += columns
        if self._column > self._width:
            self._column = self._column % self._width or self._width

    def _follow_resize(self) -> None:
        width = max(self._terminal_width(), 1)
        if width != self._width:  # the terminal has folded the line again
            self._width = width
            self._move(0)
            self._line_start = min(self._line_start, self._column)


def wrapped(text: str, width: int, *, indent: int = 0) -> list[str]:
    """Return a text in lines of at most `width` columns, broken at spaces. Longer words stay whole.

    Line breaks of the text stay. The command of a hint stays in one line, alone if it is wider than the others.

    Args:
        indent: Spaces before the lines after a break.
    """
    protected = "\n".join(_COMMAND.sub(lambda match: _unbroken(match, width), line) for line in text.split("\n"))
    wrap = WordWrap(lambda: max(width, 1), indent=indent)
    parts = [*wrap.add(protected), *wrap.flush()]
    lines = "".join(part.text for part in parts).split("\n")
    had_spaces = "\xa0" in text
    return [line if had_spaces else line.replace("\xa0", " ") for line in lines]


def _unbroken(match: re.Match[str], width: int) -> str:
    """Return a command with spaces at which no line ends, and a line break after one that is wider than a line."""
    command = match[0].removesuffix(match["space"]) if match["space"] else match[0]
    space = "\n" if match["space"] and text_width(command) > width else match["space"]
    return command.replace(" ", "\xa0") + space


def _is_ideograph(character: str) -> bool:
    """Return True for wide characters of a script without spaces. Korean has spaces between its words."""
    return character > "\u2e7f" and character_width(character) == 2 and not "\uac00" <= character <= "\ud7a3"


def _joined(parts: list[Styled]) -> Iterator[Styled]:
    """Yield the parts with neighbours of the same style joined."""
    text, style = "", ""
    for part in parts:
        if part.style != style and text:
            yield Styled(text, style)
            text = ""
        text, style = text + part.text, part.style
    if text:
        yield Styled(text, style)
