"""The differences between operating systems: llmctl without the modules that only Linux and macOS have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl import platform_support

# psutil and filelock have code of their own for each system; that for this one needs what is hidden.
WITHOUT_UNIX_MODULES = """
import builtins, sys

HIDDEN, ALLOWED = {"resource", "fcntl", "termios", "pwd"}, ("psutil", "filelock")
real_import = builtins.__import__

def hiding_import(name, globals=None, locals=None, fromlist=(), level=0):
    importer = str((globals or {}).get("__name__"))
    if name in HIDDEN and level == 0 and not importer.startswith(ALLOWED):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, globals, locals, fromlist, level)

builtins.__import__ = hiding_import
for name in HIDDEN:
    sys.modules.pop(name, None)
"""
GENERATE = "from llmctl.cli.main import run\nrun()\n"


@pytest.mark.smollm
def test_generate_answers_without_resource_fcntl_termios_and_pwd(smollm: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", str(smollm), "--temperature", "0", "--max-new-tokens", "8", "--quiet"]
    arguments += ["--prompt", "What is the capital of France?"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_UNIX_MODULES + GENERATE,
            *arguments,
            "--prompt",
            "What is the capital of France?",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


def test_the_hook_hides_the_modules_from_llmctl() -> None:
    check = (
        "from llmctl import platform_support as support\n"
        "assert support.resource is None and support.fcntl is None and not support.CAN_FORK_SAFELY\n"
        "assert support.peak_memory_bytes() > 0 and support.resource_limit('RLIMIT_AS') is None"
    )
    subprocess.run([sys.executable, "-c", WITHOUT_UNIX_MODULES + check], check=True, timeout=60)


def test_a_file_is_locked_once(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as first, (tmp_path / "file").open("w") as second:
        assert platform_support.try_lock(first)
        assert not platform_support.try_lock(second)
        first.close()
        assert platform_support.try_lock(second)


def test_bytes_are_read_and_written_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "pread", "pwrite"):
        if name:
            monkeypatch.delattr(os, name, raising=False)  # as on Windows
        descriptor = platform_support.open_descriptor(tmp_path / f"file{name}", os.O_RDWR | os.O_CREAT)
        platform_support.write_at(descriptor, b"0123456789", 0)
        platform_support.write_at(descriptor, b"ab", 4)
        assert platform_support.read_at(descriptor, 4, 3) == b"3ab6"
        os.close(descriptor)
