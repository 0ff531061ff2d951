"""The page docs/reference/images.md: written by `python -m support.vision.page [FAMILY …]` and read back."""

import re
import sys
from collections.abc import Sequence

from support.architectures.cases import ROOT
from support.vision.check import Outcome, check
from support.vision.families import FAMILIES

PAGE = ROOT / "docs" / "reference" / "images.md"
COLUMNS = ("family", "alone", "together", "arriving", "second turn", "compiled", "resized by", "note")
_VERSION = re.compile(r"^Checked with transformers (\S+)\.$", re.MULTILINE)
_ABOUT = """
<!-- Made by `make images`. Do not edit. -->

Families of models that answer questions about images. This table is measured: for each family, a tiny checkpoint with
random weights, and with the real processor of the family, is loaded by llmctl and by plain transformers. Both answer
the same conversations in float32: without an image, with one, with an image after the text, with three of different
sizes, with an image in the second turn, and with images in both turns.

* **alone**: each answer is that of plain transformers, token by token, and so is the prompt.
* **together**: so it is if all conversations are computed in the same packed passes.
* **arriving**: so it is if the conversations arrive one after the other at a running engine, as at a server.
* **second turn**: the number of images that pass through the tower again in the second turn of a conversation.
* **compiled**: on CPUs, a program of llmctl's kernels runs instead of the modules of the language model.
* **resized by**: the package that prepares the images.

`no` means that something is not available here, for the reason in the note; **wrong** and **error** are defects. A note
also names the conversations that plain transformers cannot answer.
""".strip()

Row = dict[str, str]


def row_of(outcome: Outcome) -> Row:
    """Return the row of a family."""
    note = "; ".join(re.sub(r"/\S*/", "", one) for one in outcome.notes)
    cells = dict.fromkeys(COLUMNS, "") | {"family": f"`{outcome.family}`", **outcome.cells}
    return cells | {"note": note.replace("|", "\\|").replace("<", "‹").replace(">", "›").replace("\n", " ")}


def read_page(text: str) -> tuple[str, list[Row]]:
    """Return the version of transformers and the rows."""
    lines = re.findall(r"^\| `.*\|$", text, re.MULTILINE)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    version = _VERSION.search(text)
    return version[1] if version else "", [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def render(version: str, rows: Sequence[Row]) -> str:
    """Return the page."""
    lines = ["# Images", "", *_ABOUT.splitlines(), "", f"Checked with transformers {version}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    lines += ["| " + " | ".join(row[column] for column in COLUMNS) + " |" for row in rows]
    return "\n".join([*lines, ""])


def is_defect(row: Row) -> bool:
    """Return True if any cell of a row is wrong or an error."""
    return any(row[column].startswith("**") for column in COLUMNS[:-1])


def main() -> int:
    """Check the named families, or all, and write the page. Return 1 if a cell is wrong or an error."""
    import transformers

    version, rows = read_page(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else ("", [])
    known = {row["family"].strip("`"): row for row in rows} if version == transformers.__version__ else {}
    for name in sys.argv[1:] or FAMILIES:
        known[name] = row_of(check(name))
        print(" | ".join(known[name].values()), flush=True)
        rows = [known[name] for name in sorted(known)]
        PAGE.write_text(render(transformers.__version__, rows), encoding="utf-8")
    return int(any(is_defect(row) for row in known.values()))


if __name__ == "__main__":
    sys.exit(main())
