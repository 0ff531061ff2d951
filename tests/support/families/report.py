"""Print a table of llama.cpp's chat templates: what llmctl makes of the answers of their models.

Run by `make test-templates`. Exits with 1 if a cell is wrong without a reason in the data, or right in spite of one.
"""

import fnmatch
import sys
import tempfile
from pathlib import Path

from llmctl.model.tokenizer import load_tokenizer
from support.families.checks import COLUMNS, Checks
from support.families.fetch import fetch_templates
from support.families.reader import with_template
from support.families.table import FAMILIES, Family
from support.tiny import write_tokenizer

_CACHE = Path(__file__).parents[3] / ".templates"


def main(patterns: list[str]) -> int:
    """Print the table for the templates that match a pattern. Return the exit status."""
    folder = fetch_templates(_CACHE)
    known = {name: family for family in FAMILIES for name in family.templates}
    present = {file.stem for file in folder.glob("*.jinja")}
    if difference := present ^ known.keys():
        print("not both in the archive and in the table:", ", ".join(sorted(difference)))
        return 1
    with tempfile.TemporaryDirectory() as base:
        write_tokenizer(Path(base))
        tokenizer = load_tokenizer(Path(base), {}, source="llmctl/templates")
    names = [name for name in sorted(known, key=str.lower) if _matches(name, patterns)]
    width = max(map(len, names), default=0)
    print(" ".join([" " * width, *(column.rjust(len(column)) for column in COLUMNS)]))
    wrong: list[str] = []
    for name in names:
        family = known[name]
        template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        outcomes = Checks(with_template(tokenizer, template, family), family).outcomes()
        cells, notes = _row(name, family, outcomes, wrong)
        print(" ".join([name.ljust(width), *cells, *(["|", "; ".join(notes)] if notes else [])]), flush=True)
    print(f"\n{len(names)} templates, {len(wrong)} cells are wrong", *wrong, sep="\n  ")
    return 1 if wrong else 0


def _matches(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(name.lower(), f"*{pattern.lower()}*") for pattern in patterns)


def _row(name: str, family: Family, outcomes: dict[str, str], wrong: list[str]) -> tuple[list[str], list[str]]:
    """Return the cells of a row and the reasons for what is not right. Add what has no reason to `wrong`."""
    cells, notes = [], []
    if family.only_with_tools:
        notes.append("every check has tools: the template fails without")
    if family.arguments:
        notes.append(f"needs chat.template_kwargs: {', '.join(family.arguments)}")
    for column, outcome in outcomes.items():
        reason = family.reasons.get(f"{name} {column}", family.reasons.get(column))
        if outcome.startswith("- "):
            mark, reason = "-", reason or outcome[2:]
        elif outcome == "ok":
            mark = "ok" if reason is None else "OK?"
            if reason is not None:
                wrong.append(f"{name} {column}: right, although the data says: {reason}")
        else:
            mark = "no" if reason is None else "(no)"
            if reason is None:
                wrong.append(f"{name} {column}: {outcome}")
        cells.append(mark.rjust(len(column)))
        if reason is not None:
            notes.append(f"{column}: {reason}")
    return cells, notes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
