"""Every help page, at 80 columns, in one golden file. `LLMCTL_WRITE_GOLDEN=1` (make docs) rewrites it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden" / "help.txt"
WRITE = bool(os.environ.get("LLMCTL_WRITE_GOLDEN"))
HEAVY = ("torch", "transformers", "accelerate", "bitsandbytes", "huggingface_hub.hf_api", "rich")
RENDER = f"""
import json, sys
from llmctl.cli.main import COMMANDS, main, typer_command
commands = [[name] for name in COMMANDS]
commands += [[name, inner] for name in COMMANDS for inner in getattr(typer_command(name), "commands", ())]
for words in [[], *sorted(commands)]:
    print("$ llmctl", *words, "--help")
    main([*words, "--help"])
    print()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def rendered() -> tuple[str, list[str]]:
    """Return the text of all help pages, and the heavy modules that rendering them imported."""
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
    )
    pages, heavy = done.stdout.rsplit("\n", 2)[:2]
    return f"{pages}\n", json.loads(heavy)


def test_every_help_page_is_the_one_in_the_golden_file(rendered: tuple[str, list[str]]) -> None:
    if WRITE:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(rendered[0], encoding="utf-8")
    assert rendered[0] == GOLDEN.read_text(encoding="utf-8"), "if this is intended: make docs"


def test_no_help_page_imports_a_heavy_module(rendered: tuple[str, list[str]]) -> None:
    assert rendered[1] == []


def test_no_line_of_help_is_wider_than_80_columns_or_cut(rendered: tuple[str, list[str]]) -> None:
    lines = rendered[0].splitlines()
    assert [line for line in lines if len(line) > 80 or "<str>" in line] == []
    assert [line for line in lines if line.endswith("...") and not line.startswith("Usage:")] == []
