"""Streaming Markdown: text in, styled spans out; shown text is never changed.

The styles that can be decided from the text so far are applied: headings, lists, quotes, code, bold, italics, and
tables once they end. The cursor never moves, so an answer longer than the screen stays intact, and a mark that is never
closed is shown as written.
"""

import re
from collections.abc import Callable, Generator, Iterator

from llmctl.cli._markdown_table import table_spans
from llmctl.cli._wrap import Styled

_LINE_START = re.compile(r"\s*(#{0,6}|`{0,2}|~{0,2}|[-*+>])")  # the start of a heading, a list or a fence
_FENCE = re.compile(r"\s*(```|~~~)")
_HEADING = re.compile(r"\s{0,3}#{1,6} ")
_BULLET = re.compile(r"(\s*)[-*+] ")
_QUOTE = re.compile(r"\s*> ?")
_RULE = re.compile(r"\s*\|?(\s*:?-+:?\s*\|)*\s*:?-+:?\s*\|?\s*")  # the line under the head of a table
_CELL = re.compile(r"(?<!\\)\|")
_MAX_SPAN = 300  # characters to hold back for a closing mark
_MAX_TABLE_LINES = 200  # lines to hold back for the end of the table
_STYLES = {"`": "code", "**": "bold", "*": "italic", "_": "italic"}


class MarkdownStream:
    """Renders one answer. Its state: the pending text, and the kind of the current line and block.

    Args:
        width: Returns the columns of the terminal, for tables.
    """

    def __init__(self, width: Callable[[], int] = lambda: 10_000) -> None:
        self._width = width
        self._pending = ""
        self._in_fence = False
        self._at_line_start = True
        self._style = ""
        self._previous = ""  # the last character shown in this line
        self._table: list[str] = []

    def add(self, text: str) -> Iterator[Styled]:
        """Add text and yield the spans that can be shown."""
        self._pending += text
        yield from self._take(final=False)

    def finish(self) -> Iterator[Styled]:
        """End the text and yield the pending spans."""
        yield from self._take(final=True)
        yield from self._end_table()

    def _take(self, *, final: bool) -> Iterator[Styled]:
        while self._pending:
            line, newline, _ = self._pending.partition("\n")
            whole = final or bool(newline)
            if self._at_line_start and not self._in_fence:
                if line.lstrip().startswith("|") or (self._table and not line.strip() and not whole):
                    if not whole:
                        return
                    self._table.append(line + newline)
                    self._pending = self._pending[len(line) + len(newline) :]
                    if len(self._table) > _MAX_TABLE_LINES:
                        yield from self._end_table()
                    continue
                yield from self._end_table()
            if self._at_line_start:
                if not whole and (_LINE_START.fullmatch(line) or _FENCE.match(line)):
                    return
                if _FENCE.match(line):
                    self._in_fence = not self._in_fence
                    yield Styled(line, "dim")
                    line = ""
                else:
                    yield from self._begin(line)
                    line = self._pending.partition("\n")[0]
                self._at_line_start = False
            held = yield from self._inline(line, whole=whole)
            if held or not newline:
                self._pending = held
                return
            yield Styled("\n", "")
            self._pending = self._pending.partition("\n")[2]
            self._at_line_start, self._style, self._previous = True, "", ""

    def _begin(self, line: str) -> Iterator[Styled]:
        """Consume the mark at the start of a line and set the line's style."""
        self._style = "code" if self._in_fence else ""
        if self._in_fence:
            return
        if match := _HEADING.match(line):
            self._style = "heading"
        elif match := _BULLET.match(line):
            yield Styled(f"{match[1]}• ", "")
        elif match := _QUOTE.match(line):
            self._style = "dim"
            yield Styled("▏ ", "dim")
        if match:
            self._pending = self._pending[match.end() :]

    def _inline(self, line: str, *, whole: bool) -> Generator[Styled, None, str]:
        """Yield the spans of a line; return the rest that needs more text to be decided."""
        if self._in_fence:
            yield Styled(line, self._style)
            return ""
        at = 0
        while at < len(line):
            mark = self._mark(line, at, whole=whole)
            if mark == "":
                at += 1
                continue
            end = _closing(line, at + len(mark), mark, whole=whole) if mark else None
            if end is None and not whole and len(line) - at <= _MAX_SPAN:
                yield from self._text(line[:at], self._style)
                return line[at:]
            if not mark or end is None or not 0 < end - at - len(mark) <= _MAX_SPAN:
                at += len(mark or "*")
                continue
            yield from self._text(line[:at], self._style)
            yield from self._text(line[at + len(mark) : end], _STYLES[mark])
            self._previous = mark[0]
            line, at = line[end + len(mark) :], 0
        yield from self._text(line, self._style)
        return ""

    def _text(self, text: str, style: str) -> Iterator[Styled]:
        if text:
            self._previous = text[-1]
            yield Styled(text, style)

    def _mark(self, line: str, at: int, *, whole: bool) -> str | None:
        """Return the mark that opens a span at `at`: empty for none, None if the next character decides."""
        character = line[at]
        if character == "`":
            return character
        if character not in "*_":
            return ""
        following = line[at + 1 : at + 2]
        if not following and not whole:
            return None
        if following == "*" == character:
            return "**"
        before = line[at - 1] if at else self._previous
        inside = before.isalnum() or before in ("*", "_")
        return "" if inside or following in ("", character) or following.isspace() else character

    def _end_table(self) -> Iterator[Styled]:
        """Yield the lines held back as a table: aligned if they form one, unchanged otherwise."""
        lines, self._table = self._table, []
        if len(lines) > 1 and _RULE.fullmatch(lines[1].rstrip("\n")) and "-" in lines[1]:
            yield from self._aligned([_cells(line) for line in lines])
            if not lines[-1].endswith("\n"):
                return
        else:
            for line in lines:
                yield from self._inline(line.rstrip("\n"), whole=True)
                self._previous = ""
                if line.endswith("\n"):
                    yield Styled("\n", "")
            return
        yield Styled("\n", "")

    def _aligned(self, rows: list[list[str]]) -> Iterator[Styled]:
        """Yield a table; its second row has the alignment of the columns."""
        count = max(len(row) for row in rows)
        right = [cell.endswith(":") and not cell.startswith(":") for cell in rows[1]] + [False] * count
        cells = [[_cell(cell) for cell in [*row, *[""] * (count - len(row))]] for row in (rows[0], *rows[2:])]
        yield from table_spans(cells, right=right[:count], width=self._width())


def _closing(line: str, start: int, mark: str, *, whole: bool) -> int | None:
    """Return the place of the mark that closes a span, or None if it has not arrived."""
    at = line.find(mark, start)
    while at >= 0:
        after = line[at + len(mark) : at + len(mark) + 1]
        if mark in ("`", "**"):
            return at
        if not after and not whole:
            return None
        if (
            not line[at - 1].isspace()
            and after != mark
            and line[at - 1] != mark
            and not (mark == "_" and after.isalnum())
        ):
            return at
        at = line.find(mark, at + 1)
    return None


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    parts = [part.strip().replace("\\|", "|") for part in _CELL.split(inner)]
    return parts[:-1] if parts and not parts[-1] else parts


def _cell(text: str) -> list[Styled]:
    return list(MarkdownStream()._inline(text, whole=True))
