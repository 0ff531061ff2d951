"""Start-up time is a feature: only needed modules are imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.cli.main import COMMANDS, typer_command

HEAVY = ("torch", "transformers", "accelerate", "bitsandbytes", "huggingface_hub.hf_api", "rich")


def heavy_after(*arguments: str, folder: Path) -> list[str]:
    """Return the heavy modules that a run of the command line has imported when it ends."""
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print('\\n' + json.dumps([m for m in {HEAVY!r} if m in sys.modules])))\n"
        "from llmctl.cli.main import main\n"
        f"sys.exit(main({list(arguments)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["--nope"], ["generate", "--nope"], ["genrate"], ["config", "init"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert heavy_after(*arguments, folder=tmp_path) == []


def test_a_bad_configuration_file_is_reported_without_torch(tmp_path: Path) -> None:
    (tmp_path / "llmctl.yaml").write_text("lod:\n  dtype: bf16\n")
    assert heavy_after("generate", "--prompt", "hi", folder=tmp_path) == []


def test_importing_the_library_imports_nothing_heavy() -> None:
    code = f"import llmctl, sys; llmctl.Config; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_of_commands_imports_no_configuration() -> None:
    code = "import llmctl.cli.main, sys; print([m for m in ('pydantic', 'yaml', 'llmctl.config') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_listed_line_of_a_command_is_the_first_line_of_its_own_help() -> None:
    own = {name: typer_command(name).help.splitlines()[0] for name in COMMANDS}
    assert own == {name: entry.summary for name, entry in COMMANDS.items()}
