"""Values written as literals of Python, as JSON, or as Gemma's objects. They are parsed and never executed."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from llmctl.generation.tools.scan import IncompleteError, NotACallError

_MAX_DEPTH = 64
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_TOKEN = re.compile(r"[-+.\w]+")
_BARE_KEY = re.compile(r"[^\s,:=(){}\[\]\"'<>]+")
# the inside of a string, by its quotation mark; the patterns always match, in linear time
_INSIDE = {
    quote: re.compile(rf"[^{quote[0]}\\]*(?:(?:\\.{more})[^{quote[0]}\\]*)*", flags=re.DOTALL)
    for quote, more in (('"""', '|"(?!"")'), ("'''", "|'(?!'')"), ('"', ""), ("'", ""))
}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))", flags=re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_ITSELF = "\\'\"/"


def python_literal(text: str) -> Any:
    """Return the value of a list or an object in Python's or JSON's syntax. Raise ValueError for any other text."""
    reader = LiteralReader(text, 0)
    try:
        value = reader.value()
    except IncompleteError as error:
        raise NotACallError from error
    if text[reader.at :].strip():
        raise NotACallError
    return value


class LiteralReader:
    """Reads values from a text that may still grow. Its state: the position.

    Errors are IncompleteError and NotACallError, as in `scan.skip`.

    Args:
        text: The text.
        at: The position of the first value.
        quotes: Marks around strings without escapes. With them, the keys of objects have no quotation marks.
    """

    def __init__(self, text: str, at: int, *, quotes: Sequence[str] = ()) -> None:
        self._text, self.at, self._quotes = text, at, quotes

    def pairs(
        self, separator: str, close: str, *, keys: Collection[str] = (), is_bare: bool = True, depth: int = 0
    ) -> dict[str, Any]:
        """Return keys and values up to the closing bracket.

        Args:
            separator: The character between a key and its value.
            keys: Known keys, which may contain any character.
            is_bare: True if keys have no quotation marks.
        """
        values: dict[str, Any] = {}
        while self._next() != close:
            key = self._bare_key(separator, keys) if is_bare else self.value(depth + 1)
            if isinstance(key, dict | list) or self._next() != separator:
                raise NotACallError
            self.at += 1
            values[key] = self.value(depth + 1)
            self._end_item(close)
        return values

    def value(self, depth: int = 0) -> Any:
        """Return the next value."""
        character = self._next()
        if depth > _MAX_DEPTH:
            raise NotACallError("nested too deep")
        if (quote := self._quote()) is not None:
            return self._string(quote)
        if character == "{":
            self.at += 1
            value: Any = self.pairs(":", "}", is_bare=bool(self._quotes), depth=depth)
        elif character in "[(":
            self.at += 1
            value = self._items("]" if character == "[" else ")", depth)
        else:
            return self._scalar()
        self.at += 1
        return value

    def _next(self) -> str:
        """Skip white space. Return the next character."""
        while self.at < len(self._text) and self._text[self.at].isspace():
            self.at += 1
        if self.at == len(self._text):
            raise IncompleteError
        return self._text[self.at]

    def _end_item(self, close: str) -> None:
        """Skip the comma after an item, which may be missing before the closing bracket."""
        if self._next() == ",":
            self.at += 1
        elif self._next() != close:
            raise NotACallError

    def _items(self, close: str, depth: int) -> Any:
        """Return the items up to the closing bracket. One value in parentheses is itself."""
        items = []
        while self._next() != close:
            items.append(self.value(depth + 1))
            self._end_item(close)
        is_tuple = close == "]" or len(items) != 1 or self._text[: self.at].rstrip().endswith(",")
        return items if is_tuple else items[0]

    def _quote(self) -> str | None:
        """Return the quotation mark at the position, or None."""
        marks = (*self._quotes, '"') if self._quotes else tuple(_INSIDE)
        quote = next((mark for mark in marks if self._text.startswith(mark, self.at)), None)
        begun = self._text[self.at : self.at + 10]
        if any(mark != begun and mark.startswith(begun) for mark in marks):
            raise IncompleteError  # it may become a longer mark
        return quote

    def _string(self, quote: str) -> str:
        start = self.at + len(quote)
        if quote in self._quotes:
            end = self._text.find(quote, start)
            if end < 0:
                raise IncompleteError
            self.at = end + len(quote)
            return self._text[start:end]
        inside = _INSIDE[quote].match(self._text, start)
        assert inside is not None  # noqa: S101 (the patterns match always)
        if not self._text.startswith(quote, inside.end()):
            raise IncompleteError
        self.at = inside.end() + len(quote)
        return _unescaped(inside[0])

    def _bare_key(self, separator: str, keys: Collection[str]) -> str:
        if (quote := self._quote()) is not None:
            return self._string(quote)
        start = self.at
        for key in sorted(keys, key=len, reverse=True):
            if self._text.startswith(key, start):
                self.at = start + len(key)
                if self._next() == separator:
                    return key
            elif key.startswith(self._text[start : start + len(key)]):
                raise IncompleteError
        match = _BARE_KEY.match(self._text, start)
        if match is None:
            raise NotACallError
        self.at = match.end()
        return match[0]

    def _scalar(self) -> Any:
        match = _TOKEN.match(self._text, self.at)
        if match is None:
            raise NotACallError
        if match.end() == len(self._text):
            raise IncompleteError
        self.at = match.end()
        if match[0] in _CONSTANTS:
            return _CONSTANTS[match[0]]
        if not re.match(r"[-+]?\.?\d", match[0]):
            raise NotACallError
        try:
            return int(match[0], 0)
        except ValueError:
            return float(match[0])


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def character(match: re.Match[str]) -> str:
        digits = match[1] or match[2] or match[3]
        if digits is not None:
            return chr(min(int(digits, 16), 0x10FFFF))
        return match[4] if match[4] in _ITSELF else _ESCAPED.get(match[4], match[0])

    unescaped = _ESCAPE.sub(character, text)
    # JSON writes characters beyond U+FFFF as two surrogates
    return unescaped.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
