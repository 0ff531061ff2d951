"""Loading of the compiled library, and the reasons reported if it cannot be used."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmctl.cpu.kernels
from llmctl.cpu.kernels import Kernels
from llmctl.cpu.structs import Operation, Pass
from support import forkserver


def printed(code: str, **environment: str) -> str:
    """Return the output of a new Python process."""
    done = subprocess.run(
        [sys.executable, "-c", f"import llmctl.cpu.kernels as k\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_the_library_is_opened_without_torch(best: Kernels) -> None:
    assert printed("import sys; print(k.load().isa, 'torch' in sys.modules)") == f"{best.isa} False"


def test_an_instruction_set_can_be_forced(best: Kernels) -> None:
    assert printed("print(k.load().isa)", LLMCTL_KERNELS_ISA="portable") == "portable"
    reason = printed("print(k.load(), k.missing())", LLMCTL_KERNELS_ISA="abacus")
    assert reason == f"None LLMCTL_KERNELS_ISA=abacus is not one of {', '.join(best.usable)}"


def test_an_invalid_library_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    reason = printed("print(k.load(), k.missing())", LLMCTL_KERNELS_LIBRARY=str(broken))
    assert reason.startswith(f"None {broken} cannot be opened (")


@pytest.mark.parametrize(("struct", "header"), [(Operation, "kernels.h"), (Pass, "program.h")])
def test_a_python_struct_has_the_fields_of_its_header_in_the_same_order(
    struct: type[ctypes.Structure], header: str
) -> None:
    text = Path(llmctl.cpu.kernels.__file__).with_name("native").joinpath(header).read_text(encoding="utf-8")
    body = re.search(rf"struct {struct.__name__} \{{(.*?)\n\}};", re.sub("//.*", "", text), re.DOTALL)
    assert body is not None
    declared = [name for line in body[1].split(";") for name in re.findall(r"(\w+)\s*(?:,|$)", line.strip())]
    assert [field[0] for field in struct._fields_] == declared


@pytest.mark.parametrize("struct", ["Operation", "Pass"])
def test_a_library_with_a_struct_of_another_size_is_refused(best: Kernels, struct: str) -> None:
    code = (
        "import ctypes\n"
        f"class Longer(k.{struct}): _fields_ = [('more', ctypes.c_int64)]\n"
        f"Longer.__name__ = '{struct}'; k.{struct} = Longer; print(k.load(), k.missing())"
    )
    assert f"bytes in struct {struct}, but" in printed(code)


def test_without_a_compiled_library_there_is_a_reason(tmp_path: Path) -> None:
    reason = printed("k._NAME = 'absent.so'; print(k.load(), k.missing())")
    assert reason.startswith("None they were not compiled when llmctl was installed")


def test_there_are_kernels_or_a_reason_why_not() -> None:
    assert (llmctl.cpu.kernels.load() is None) == (llmctl.cpu.kernels.missing() is not None)


@pytest.mark.parametrize("own_pool", [True, False])
def test_threads_share_the_work(best: Kernels, own_pool: bool) -> None:
    """Test torch's OpenMP thread pool and the library's own."""
    code = (
        "import torch; torch.set_num_threads(3); l = k.load(); w = torch.ones(4096, 256); x = torch.ones(64, 256);"
        f"l.threads(); l._library.llmctl_use_region(None) if {own_pool} else None;"
        "print({float(l.linear(x, w).sum()) for _ in range(50)})"
    )
    done = forkserver.run(program=("-c", f"import llmctl.cpu.kernels as k; {code}"))
    assert done.stdout.strip() == "{67108864.0}", done.stderr
