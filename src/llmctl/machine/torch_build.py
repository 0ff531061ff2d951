"""The installed build of torch, read from its files: what it computes on, and the GPUs that it has code for."""

import functools
import importlib.util
import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# torch/csrc/cuda/Module.cpp keeps the list that torch.cuda.get_arch_list() returns as one text, as in
# "sm_75 sm_80 compute_120", in the library of the Python bindings. The byte before it is not always zero (torch 2.9).
_BINDINGS = ("libtorch_python.so", "torch_python.dll")
_ARCHITECTURES = re.compile(rb"(?:\0|[^ ](?=[^ \0]+ ))((?:(?:sm|compute)_\d+[a-z]?(?: |(?=\0)))+)\0")
_LONGEST = 400


@dataclass(frozen=True)
class TorchBuild:
    """A build of torch.

    Attributes:
        folder: Folder of the package.
        cuda: CUDA version that it is built for, or None.
        hip: ROCm's HIP version that it is built for, or None.
        xpu: oneAPI version that it is built for, or None.
    """

    folder: Path
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None


def read_torch_build() -> TorchBuild | None:
    """Read the build of the installed torch; None if torch is not installed or its version.py cannot be read."""
    spec = importlib.util.find_spec("torch")
    return build_in(Path(spec.origin).parent) if spec is not None and spec.origin else None


def build_in(folder: Path) -> TorchBuild | None:
    """Read version.py in torch's folder; None if it cannot be read."""
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    assigned = re.findall(r"^(cuda|hip|xpu)\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return TorchBuild(folder, **dict(assigned))


@functools.cache
def read_architectures(folder: Path) -> tuple[str, ...]:
    """Return the CUDA architectures that the torch in `folder` has code for; empty if they cannot be read.

    Takes some 50 ms for the 30 MB of the library, which is why importing torch (seconds) is not the way to ask.
    """
    for name in _BINDINGS:
        try:
            with (
                (folder / "lib" / name).open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                return _architectures_in(data)
        except (OSError, ValueError):  # there is no such file, or it is empty
            continue
    return ()


def has_code_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool | None:
    """Return True if code for one of `architectures` runs on an NVIDIA card; None if none of them is known.

    `sm_86` runs on the same major version with an equal or higher minor version; `compute_120` also on later versions.
    """
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in architectures]
    built = [(match[1], (int(match[2]), int(match[3]))) for match in known if match]
    if not built:
        return None
    major, minor = capability
    return any(
        (kind == "sm" and at[0] == major and at[1] <= minor) or (kind == "compute" and at <= capability)
        for kind, at in built
    )


def _architectures_in(data: mmap.mmap) -> tuple[str, ...]:
    """Return the list in a library. `find` passes over the rest of it ten times as fast as a pattern would."""
    at = data.find(b"sm_")
    while at >= 0:
        match = _ARCHITECTURES.match(data[max(at - 1, 0) : at + _LONGEST])
        if match:
            return tuple(match[1].decode().split())
        at = data.find(b"sm_", at + 1)
    return ()
