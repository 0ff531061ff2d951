"""The layout of a Markdown table on a terminal: cells wrap at words, or each row becomes a list of names and values."""

from collections.abc import Iterator, Sequence

from llmctl.cli._wrap import Styled, WordWrap, text_width

_GAP = 2
Cell = list[Styled]


def table_spans(rows: Sequence[Sequence[Cell]], *, right: Sequence[bool], width: int) -> Iterator[Styled]:
    """Yield a table with aligned columns: a bold head, a rule, the rows. There is no line break after its end.

    Args:
        rows: The cells, the head first. All rows have the same length.
        right: True for each column that is aligned to the right.
        width: Columns of the terminal.
    """
    columns = list(zip(*rows, strict=True))
    natural = [max(_width(cell) for cell in column) for column in columns]
    minimum = [
        high if is_right else max(_width(line) for cell in column for line in _lines(cell, 1))  # numbers have spaces
        for column, high, is_right in zip(columns, natural, right, strict=True)
    ]
    room = width - _GAP * (len(columns) - 1)
    if sum(minimum) > room:
        yield from _records(rows, width)
        return
    cap = max(natural, default=0)
    while sum(widths := [max(low, min(high, cap)) for low, high in zip(minimum, natural, strict=True)]) > room:
        cap -= 1
    rule = Styled("\n" + (" " * _GAP).join("─" * width for width in widths), "dim")
    for number, row in enumerate(rows):
        if number:
            yield Styled("\n")
        yield from _row(row, widths, right, style="bold" if number == 0 else None)
        if number == 0:
            yield rule


def _row(row: Sequence[Cell], widths: Sequence[int], right: Sequence[bool], *, style: str | None) -> Iterator[Styled]:
    """Yield one row, in as many lines as its longest cell needs."""
    lines = [_lines(cell, width) for cell, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, lines))):
        if number:
            yield Styled("\n")
        for column, cell in enumerate(lines):
            spans = cell[number] if number < len(cell) else []
            space = " " * (widths[column] - _width(spans))
            if right[column]:
                yield Styled(space)
            yield from (Styled(span.text, span.style if style is None else style) for span in spans)
            last = column == len(widths) - 1
            yield Styled(("" if right[column] or last else space) + ("" if last else " " * _GAP))


def _records(rows: Sequence[Sequence[Cell]], width: int) -> Iterator[Styled]:
    """Yield each row as lines `name: value`, with an empty line between rows."""
    head, *body = rows
    for number, row in enumerate(body or [[[] for _ in head]]):
        if number:
            yield Styled("\n\n")
        for column, (name, cell) in enumerate(zip(head, row, strict=True)):
            if column:
                yield Styled("\n")
            spans = [*(Styled(span.text, "bold") for span in name), Styled(": "), *cell]
            for place, line in enumerate(_lines(spans, width, indent=2)):
                yield from [Styled("\n"), *line] if place else line


def _lines(cell: Cell, width: int, *, indent: int = 0) -> list[Cell]:
    """Return a cell in lines of at most `width` columns; words that are wider stay whole."""
    wrap = WordWrap(lambda: width, indent=indent)
    lines: list[Cell] = [[]]
    for part in [*(part for span in cell for part in wrap.add(span.text, span.style)), *wrap.flush()]:
        first, *rest = part.text.split("\n")
        lines[-1].append(Styled(first, part.style))
        lines += [[Styled(text, part.style)] for text in rest]
    return lines


def _width(spans: Sequence[Styled]) -> int:
    return sum(text_width(span.text) for span in spans)
