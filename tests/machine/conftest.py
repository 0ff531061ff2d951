"""Machines by hand: NVIDIA's driver, the build of torch, the torch that the child process imports, and the RAM."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmctl.machine import detection, nvml, torch_gpus
from llmctl.machine.amd import AmdCard
from llmctl.machine.torch_build import TorchBuild

_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that choose GPUs, and forget what an earlier test's torch has answered."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch_gpus._answer_of_child.cache_clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Install NVML, a build of torch, traces of NVIDIA's driver, and cards of AMD."""

    def installed(
        library: Any = None,
        *,
        driver: bool = False,
        architectures: str = "",
        amd: Sequence[AmdCard] = (),
        **build: str,
    ) -> None:
        (tmp_path / "lib").mkdir()
        content = b"\x7fELF sm_ \0not sm_75\0" + architectures.encode() + b"\0compute_at\0"
        (tmp_path / "lib" / "libtorch_python.so").write_bytes(content)
        monkeypatch.setattr(nvml, "load_library", lambda: library)
        monkeypatch.setattr(detection, "driver_is_present", lambda: driver)
        monkeypatch.setattr(detection, "may_find_gpus", lambda **_: True)
        monkeypatch.setattr(detection, "read_amd_cards", lambda: amd)
        monkeypatch.setattr(detection, "read_torch_build", lambda: TorchBuild(tmp_path, **(build or {"cuda": "13.0"})))

    return installed


@pytest.fixture
def plant_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Put a package `torch` with this code before the real one, for the child process; return its folder."""

    def planted(code: str) -> Path:
        folder = tmp_path / "packages" / "torch"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder.parent), prepend=os.pathsep)
        return folder

    return planted
