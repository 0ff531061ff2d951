"""The layout of tables on a terminal.

A table fits the terminal: columns of prose wrap at spaces, then columns are omitted. If that is not enough, an id in
the first column that is too wide stands on a line above the rest of its row, or else each row becomes lines of names
and values. No other cell is ever broken: ids, numbers and dates can be read and copied.
"""

from collections.abc import Sequence

from llmctl.cli._wrap import Styled, text_width, wrapped

_GAP = 2
_MIN_PROSE = 24  # columns of prose; with less, other columns are omitted first


def table_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int,
    drop: Sequence[str] = (),
    wrap: Sequence[str] = (),
) -> tuple[list[list[Styled]], list[str]]:
    """Return the lines of a table, and the names of omitted columns.

    Args:
        width: Columns of the terminal.
        drop: Columns that can be omitted, the first one first.
        wrap: Columns of prose.
    """
    fit = _fit(columns, rows, width=width, drop=drop, wrap=wrap)
    above: list[str] = [""] * len(rows)
    if fit is None:
        above = [row[0] if text_width(row[0]) > width // 2 and columns[0] not in wrap else "" for row in rows]
        rows = [("", *row[1:]) if name else row for name, row in zip(above, rows, strict=True)]
        fit = _fit(columns, rows, width=width, drop=drop, wrap=wrap) if any(row[0] for row in rows) else None
    if fit is None:  # then nothing needs to be omitted
        rows = [(name, *row[1:]) if name else row for name, row in zip(above, rows, strict=True)]
        return _blocks(columns, rows, width=width), []
    kept, widths = fit
    lines = _row([columns[at] for at in kept], widths, style="bold")
    for name, row in zip(above, rows, strict=True):
        lines += [[Styled(name)]] if name else []
        lines += _row([row[at] for at in kept], widths)
    return lines, [name for at, name in enumerate(columns) if at not in kept]


def _fit(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int,
    drop: Sequence[str],
    wrap: Sequence[str],
) -> tuple[list[int], list[int]] | None:
    """Return the columns that remain and their widths, or None if the others are too wide."""
    kept = list(range(len(columns)))
    droppable = [columns.index(name) for name in drop if name in columns]
    while (widths := _widths(columns, rows, kept, width=width, wrap=wrap)) is None and droppable:
        kept.remove(droppable.pop(0))
    return None if widths is None else (kept, widths)


def _widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int], *, width: int, wrap: Sequence[str]
) -> list[int] | None:
    """Return the width of each kept column, or None if they do not fit."""
    natural = [max(text_width(row[at]) for row in [columns, *rows]) for at in kept]
    excess = sum(natural) + _GAP * (len(kept) - 1) - width
    prose = [place for place, at in enumerate(kept) if columns[at] in wrap]
    for place in sorted(prose, key=lambda place: -natural[place]):
        if excess > 0:
            words = (word for row in rows for word in row[kept[place]].split(" "))
            minimum = max([min(_MIN_PROSE, natural[place]), *map(text_width, words)])
            narrower = max(natural[place] - excess, minimum)
            excess, natural[place] = excess - natural[place] + narrower, narrower
    return natural if excess <= 0 else None


def _row(cells: Sequence[str], widths: Sequence[int], *, style: str = "") -> list[list[Styled]]:
    """Return the lines of one row."""
    parts = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for number in range(max(map(len, parts), default=0)):
        line = ""
        for part, width in zip(parts, widths, strict=True):
            cell = part[number] if number < len(part) else ""
            line += cell + " " * (width - text_width(cell) + _GAP)
        lines.append([Styled(line.rstrip(), style)])
    return lines


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int) -> list[list[Styled]]:
    """Return each row as lines of names and values, with an empty line between rows."""
    names = max(map(text_width, columns))
    lines: list[list[Styled]] = []
    for number, row in enumerate(rows):
        lines += [[]] if number else []
        for name, value in zip(columns, row, strict=True):
            first, *rest = wrapped(value, max(width - names - _GAP, 1))
            if text_width(first) > width - names - _GAP:  # a line of its own, so that the terminal does not fold it
                lines += [[Styled(name, "bold")], *([Styled(line)] for line in wrapped(value, width))]
                continue
            space = " " * (names - text_width(name) + _GAP)
            lines.append([Styled(name + space, "bold"), Styled(first)])
            lines += [[Styled(" " * (names + _GAP) + line)] for line in rest]
    return lines
