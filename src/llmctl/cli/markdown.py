"""Markdown as it streams: text in, styled spans out, nothing taken back once it is shown.

Only what can be decided from the text so far is styled: headings, lists, quotes, code and bold. No cursor moves, so an
answer longer than the screen stays whole, and a mark that is never closed is shown as it was written.
"""

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

_LINE_START = re.compile(r"\s*(#{0,6}|`{0,2}|~{0,2}|[-*+>])")  # a line that may still become something special
_FENCE = re.compile(r"\s*(```|~~~)")
_HEADING = re.compile(r"\s{0,3}#{1,6} ")
_BULLET = re.compile(r"(\s*)[-*+] ")
_QUOTE = re.compile(r"\s*> ?")
_LONGEST_SPAN = 300  # characters that wait for the mark that closes them


class Span(NamedTuple):
    """Text and how it looks: ``, `bold`, `code`, `heading` or `dim`."""

    text: str
    style: str


class MarkdownStream:
    """Renders one answer. Its state: the text held back, and what the current line and block are."""

    def __init__(self) -> None:
        self._held = ""
        self._in_fence = False
        self._at_line_start = True
        self._style = ""

    def add(self, text: str) -> Iterator[Span]:
        """Take new text; yield what can be shown."""
        self._held += text
        yield from self._take(final=False)

    def finish(self) -> Iterator[Span]:
        """No more text: yield what was held back."""
        yield from self._take(final=True)

    def _take(self, *, final: bool) -> Iterator[Span]:
        while self._held:
            line, newline, _ = self._held.partition("\n")
            whole = final or bool(newline)
            if self._at_line_start:
                if not whole and (_LINE_START.fullmatch(line) or _FENCE.match(line)):
                    return
                if _FENCE.match(line):
                    self._in_fence = not self._in_fence
                    yield Span(line, "dim")
                    line = ""
                else:
                    yield from self._begin(line)
                    line = self._held.partition("\n")[0]
                self._at_line_start = False
            held = yield from self._inline(line, whole=whole)
            if held or not newline:
                self._held = held
                return
            yield Span("\n", "")
            self._held = self._held.partition("\n")[2]
            self._at_line_start, self._style = True, ""

    def _begin(self, line: str) -> Iterator[Span]:
        """Take the mark that begins a line, and set the line's style."""
        self._style = "code" if self._in_fence else ""
        if self._in_fence:
            return
        if match := _HEADING.match(line):
            self._style = "heading"
        elif match := _BULLET.match(line):
            yield Span(f"{match[1]}• ", "")
        elif match := _QUOTE.match(line):
            self._style = "dim"
            yield Span("▏ ", "dim")
        if match:
            self._held = self._held[match.end() :]

    def _inline(self, line: str, *, whole: bool) -> Generator[Span, None, str]:
        """Yield the spans of a line; return what has to wait for more text."""
        while line:
            at = min((place for mark in ("**", "`") if (place := line.find(mark)) >= 0), default=-1)
            if self._in_fence or at < 0:
                waits = not whole and not self._in_fence and line.endswith("*")
                yield Span(line[: len(line) - waits], self._style)
                return line[len(line) - waits :]
            mark = "`" if line[at] == "`" else "**"
            end = line.find(mark, at + len(mark))
            if at:
                yield Span(line[:at], self._style)
                line, end = line[at:], end - at if end >= 0 else -1
            if end > len(mark):
                yield Span(line[len(mark) : end], "code" if mark == "`" else "bold")
                line = line[end + len(mark) :]
            elif whole or end >= 0 or len(line) > _LONGEST_SPAN:
                yield Span(mark, self._style)
                line = line[len(mark) :]
            else:
                return line
        return ""
