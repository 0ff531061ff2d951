"""The build backend: scikit-build-core, with two things of our own.

An editable installation is one line in a .pth file, so that a PYTHONPATH with another checkout still wins; the finder
that scikit-build-core would install comes before sys.path. And where no CMake can be had at all, the package is
installed without its kernels, as it is where the compiler is missing or fails (`if.failed` in pyproject.toml).
"""

import base64
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

from scikit_build_core import build as _backend
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)
from scikit_build_core.errors import CMakeNotFoundError

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

_SOURCE = Path(__file__).parent / "src"


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel, with kernels where they can be compiled."""
    try:
        return _backend.build_wheel(wheel_directory, config_settings, metadata_directory)
    except CMakeNotFoundError:
        os.environ["LLMCTL_WITHOUT_KERNELS"] = "1"
        return _backend.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel, and put a path to the sources in the place of every Python file in it."""
    name = build_wheel(wheel_directory, config_settings, metadata_directory)
    built = Path(wheel_directory) / name
    whole = built.with_suffix(".whole")
    built.rename(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(built, "w", zipfile.ZIP_DEFLATED) as new:
        record_name = next(n for n in old.namelist() if n.endswith(".dist-info/RECORD"))
        record = []
        for line in old.read(record_name).decode().splitlines():
            path = line.rsplit(",", 2)[0].strip('"')
            if ".dist-info/" in path or path.startswith("llmctl/cpu/llmctl_kernels."):
                record.append(line)
                if path != record_name:
                    new.writestr(old.getinfo(path), old.read(path))
        pointer = f"{_SOURCE}\n".encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(pointer).digest()).rstrip(b"=").decode()
        new.writestr("_llmctl_hf.pth", pointer)
        new.writestr(record_name, "\n".join([f"_llmctl_hf.pth,sha256={digest},{len(pointer)}", *record, ""]))
    whole.unlink()
    return name
