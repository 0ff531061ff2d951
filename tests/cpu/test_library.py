"""How the compiled library is found, and what is said where it is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmctl.cpu.kernels
from llmctl.cpu.kernels import Kernels


def asked(code: str, **environment: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"import llmctl.cpu.kernels as k; {code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_the_library_is_opened_without_torch(best: Kernels) -> None:
    assert asked("import sys; print(k.load().isa, 'torch' in sys.modules)") == f"{best.isa} False"


def test_an_instruction_set_can_be_forced(best: Kernels) -> None:
    assert asked("print(k.load().isa)", LLMCTL_KERNELS_ISA="portable") == "portable"
    said = asked("print(k.load(), k.missing())", LLMCTL_KERNELS_ISA="abacus")
    assert said == f"None LLMCTL_KERNELS_ISA=abacus is not one of {', '.join(best.usable)}"


def test_a_library_that_is_not_one_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    said = asked("print(k.load(), k.missing())", LLMCTL_KERNELS_LIBRARY=str(broken))
    assert said.startswith(f"None {broken} cannot be opened (")


def test_without_a_compiled_library_there_is_a_reason(tmp_path: Path) -> None:
    said = asked("k._NAME = 'absent.so'; print(k.load(), k.missing())")
    assert said.startswith("None they were not compiled when llmctl was installed")


def test_either_there_are_kernels_or_a_reason() -> None:
    assert (llmctl.cpu.kernels.load() is None) == (llmctl.cpu.kernels.missing() is not None)


@pytest.mark.parametrize("own_pool", [True, False])
def test_threads_share_the_work(best: Kernels, own_pool: bool) -> None:
    """With the pool of OpenMP that torch uses, and with the library's own."""
    code = (
        "import torch; torch.set_num_threads(3); l = k.load(); w = torch.ones(4096, 256); x = torch.ones(64, 256);"
        f"l._prepare(); l._library.llmctl_use_region(None) if {own_pool} else None;"
        "print({float(l.linear(x, w).sum()) for _ in range(50)})"
    )
    assert asked(code) == "{67108864.0}"
