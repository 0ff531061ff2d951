"""Check single architectures in this process: `python -m support.architectures.check_one [--composite] TYPE …`.

Prints each result as JSON. `--keep FOLDER` keeps the tiny checkpoint there.
"""

import argparse
import json
import sys
from pathlib import Path

import support.architectures.preload  # noqa: F401
from support.architectures.checks import check


def main() -> int:
    """Return 1 if a cell is wrong or an error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="+")
    parser.add_argument("--composite", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    bad = 0
    for name in options.types:
        outcome = check(name, is_composite=options.composite, folder=options.keep)
        print(json.dumps(outcome.document(), indent=1))
        bad += bool({"WRONG", "ERROR"} & set(outcome.cells.values()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
