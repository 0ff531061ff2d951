"""The page docs/reference/architectures.md: written from the results of a sweep, and read back.

Rows without a new result are kept, so that a few types can be checked again. The page has no other source: its totals
are computed from its rows.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.architectures.cases import ROOT, Case, read_results, results_files

PAGE = ROOT / "docs" / "reference" / "architectures.md"
COLUMNS = ("type", "loads", "packed", "prefix cache", "compiled", "8 bits", "4 bits", "note")
_CAUSAL, _COMPOSITE = "## Causal language models", "## Models of text and images"
_VERSION = re.compile(r"^Checked with transformers (\S+)\.$", re.MULTILINE)
_OLDEST = re.compile(r"^With transformers (?!\S+\.$).*$", re.MULTILINE)
_NOT_BUILT, _NO_TEXT = "not built", "no text"

_ABOUT = """
<!-- Made by `make architectures`. Do not edit. -->

llmctl runs the architectures of transformers that continue a text. This table is measured: for each model type, a tiny
checkpoint with random weights is loaded by llmctl and by plain transformers.

* **loads**: llmctl loads it, plans its memory within 2 %, and answers in float32 as plain transformers does, in tokens
  and log-probabilities: as its `generate`, or as one pass over prompt and answer where these differ (transformers
  bounds the time steps of Nemotron-H and Zamba 2 in the latter only). The prompts have 3 to 200 tokens, many times the
  sliding windows, chunks and convolutions of these models, and pass the length at which longrope changes. The turns of
  a chat answer as single prompts do.
* **packed**: batches and the server compute several answers in one forward pass; otherwise one after the other. In both
  cases the answers are those of single prompts, also when requests arrive and are cancelled in between.
* **prefix cache**: a prompt that begins as an earlier one is not computed again from its beginning, and its answer is
  the same.
* **compiled**: on CPUs, a program of llmctl's kernels runs instead of Python modules. The others use the kernels module
  by module.
* **8 bits, 4 bits**: llmctl's own quantisation on CPUs. The predictions diverge from those in float32 by at most 1.5
  times as much as those of plain transformers with every weight rounded to 8 or 4 bits. (A fixed bound would be
  meaningless: random layers amplify rounding as trained ones do not.)

`no` means that something is not available for this type; **wrong** and **error** are defects. `not built` are types of
which no checkpoint can be made, `no text` those that plain transformers cannot continue a text with.
""".strip()


@dataclass(frozen=True)
class Row:
    """One line of a table, with the text of each cell by column."""

    case: Case
    cells: dict[str, str]

    def line(self) -> str:
        """Return the row as Markdown."""
        return "| " + " | ".join(self.cells[column] for column in COLUMNS) + " |"


def row_of(document: dict[str, Any]) -> Row:
    """Return the row of a result."""
    cells, notes = document["cells"], document["notes"]
    case = Case(document["model_type"], document["is_composite"])
    shown = dict.fromkeys(COLUMNS, "")
    shown |= {"type": f"`{case.model_type}`", "loads": _loads(cells)}
    for column in COLUMNS[2:-1]:
        shown[column] = _cell(cells.get(column, ""))
    shown["note"] = "; ".join(
        _note(column, note, cells) for column, note in notes.items() if cells.get(column) != "yes"
    )
    return Row(case, shown)


def _loads(cells: dict[str, str]) -> str:
    """Return the first cell that is not `yes` among those that precede an answer."""
    if cells.get("built") != "yes":
        return _NOT_BUILT if cells.get("built") == "no" else _cell("ERROR")
    if cells.get("transformers") == "no" and cells.get("loads") != "ERROR" and cells.get("answers") != "ERROR":
        return _NO_TEXT
    parts = [cells[name] for name in ("loads", "answers", "bytes", "chat", "bfloat16") if name in cells]
    return _cell(next((part for part in ("ERROR", "WRONG", "no") if part in parts), "yes"))


def _cell(value: str) -> str:
    return {"WRONG": "**wrong**", "ERROR": "**error**"}.get(value, value)


def _note(column: str, note: str, cells: dict[str, str]) -> str:
    text = re.sub(r"/\S*/", "", note).replace("|", "\\|").replace("<", "‹").replace(">", "›")
    return text if cells[column] == "no" else f"{column}: {text}"


def read_page(text: str) -> tuple[str, list[Row], str]:
    """Return the version of transformers, the rows, and the paragraph about older versions."""
    rows = []
    for part, is_composite in ((text.partition(_COMPOSITE)[0], False), (text.partition(_COMPOSITE)[2], True)):
        for line in re.findall(r"^\| `.*\|$", part, re.MULTILINE):
            values = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            rows.append(Row(Case(values[0].strip("`"), is_composite), dict(zip(COLUMNS, values, strict=True))))
    version, oldest = _VERSION.search(text), _OLDEST.search(text)
    return (version[1] if version else "", rows, oldest[0] if oldest else "")


def render(version: str, rows: Sequence[Row], oldest: str) -> str:
    """Return the page."""
    lines = ["# Architectures", "", *_ABOUT.splitlines(), "", f"Checked with transformers {version}.", ""]
    lines += _totals(rows)
    lines += ["", oldest] if oldest else []
    for title, is_composite in ((_CAUSAL, False), (_COMPOSITE, True)):
        lines += ["", title, "", "| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
        of_kind = (row for row in rows if row.case.is_composite == is_composite)
        lines += [row.line() for row in sorted(of_kind, key=lambda row: row.case.model_type)]
    return "\n".join([*lines, ""])


def _totals(rows: Sequence[Row]) -> list[str]:
    """Return a table of the number of types in each state."""
    heads = ("", "types", "no text or not built", *COLUMNS[1:-1], "refused", "wrong or error")
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for title, is_composite in (("causal language models", False), ("models of text and images", True)):
        counts = totals([row for row in rows if row.case.is_composite == is_composite])
        lines.append("| " + " | ".join([title, *(str(counts[head]) for head in heads[1:])]) + " |")
    return lines


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """Return the number of types, of each column's `yes`, of refused types, and of types with a defect."""
    counts = {column: sum(row.cells[column] == "yes" for row in rows) for column in COLUMNS[1:-1]}
    loads = [row.cells["loads"] for row in rows]
    return {
        "types": len(rows),
        "no text or not built": loads.count(_NO_TEXT) + loads.count(_NOT_BUILT),
        **counts,
        "refused": loads.count("no"),
        "wrong or error": sum(is_defect(row) for row in rows),
    }


def is_defect(row: Row) -> bool:
    """Return True if any cell of a row is wrong or an error."""
    return any(cell.startswith("**") for column, cell in row.cells.items() if column != "note")


def write_page() -> None:
    """Write the page from the results of the newest transformers, and the rows that it has already."""
    *older, newest = results_files()
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    version, rows, oldest = read_page(text)
    of_newest = newest.stem.removeprefix("transformers-")
    known = {row.case: row for row in rows} if version.partition("+")[0] == of_newest else {}
    known |= {case: row_of(document) for case, document in read_results(newest).items()}
    if older:
        oldest = _about_older(older[0])
    PAGE.write_text(render(of_newest, list(known.values()), oldest), encoding="utf-8")


def _about_older(file: Path) -> str:
    rows = [row_of(document) for document in read_results(file).values()]
    return " ".join(_sentences(file.stem.removeprefix("transformers-"), rows))


def _sentences(version: str, rows: Sequence[Row]) -> Iterable[str]:
    """Yield the totals of a sweep in words."""
    yield f"With transformers {version}, the oldest that llmctl supports:"
    for title, is_composite in (("causal language models", False), ("models of text and images", True)):
        counts = totals([row for row in rows if row.case.is_composite == is_composite])
        yield (
            f"of {counts['types']} {title}, {counts['loads']} load, {counts['packed']} are packed, "
            f"{counts['compiled']} have a compiled program, {counts['8 bits']} run in 8 bits and {counts['4 bits']} in "
            f"4 bits; {counts['wrong or error']} are wrong or end in an error."
        )
