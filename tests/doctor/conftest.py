"""Fixtures of the doctor's tests: planted packages, and a machine to examine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import forkserver
from support.hub_machine import make_model
from support.hub_standin import HubStandin

Plant = Callable[..., Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Put a package in front of the installed ones: `plant("accelerate", "raise OSError")`. Returns the folder."""
    folder = tmp_path / "planted"

    def make(name: str, code: str, *, version: str | None = None) -> Path:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code)
        if version is not None:
            about = folder / f"{name}-{version}.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return folder

    return make


STUBS = {
    "torch": (
        "__version__ = '2.13.0'\nimport os\n"
        "class version: cuda = hip = None\n"
        "def get_num_threads(): return int(os.environ.get('OMP_NUM_THREADS', len(os.sched_getaffinity(0))))\n"
    ),
    "transformers": "__version__ = '5.24.0'\nAutoModelForCausalLM = AutoTokenizer = object\n",
    "transformers/utils": "",
    "transformers/utils/import_utils": "KERNELS_MIN_VERSION, KERNELS_MAX_VERSION = '0.18.2', '0.19.0'\n",
    "accelerate": "__version__ = '1.15.0'\n",
    "bitsandbytes": "__version__ = '0.50.2'\n",
    "bitsandbytes/cextension": (
        "BNB_BACKEND = 'CPU'\nclass ErrorHandlerMockBNBNativeLibrary: pass\nclass lib: compiled_with_cuda = False\n"
    ),
}


@pytest.fixture
def quick(tmp_path: Path) -> str:
    """Return a PYTHONPATH with stand-ins for packages that take seconds to import, for tests of something else."""
    folder = tmp_path / "stubs"
    for name, code in STUBS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code)
    return str(folder)


class Doctor:
    """Runs `llmctl doctor --json` in a child process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> dict[str, Any]:
        done = self.raw("--json", *arguments, prefix=prefix, **environment)
        document: dict[str, Any] = json.loads(done.stdout)
        assert document["schema"] == "llmctl.doctor/1", done.stdout
        document["exit_code"] = done.returncode
        document["all_text"] = done.stdout + done.stderr
        document["line"] = {check["name"]: check for check in document["checks"]}
        return document

    def raw(
        self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Return the completed process. Imports may take long if several tests share two cores."""
        patient = () if "--time-limit" in arguments else ("--time-limit", "200")
        env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
        if not prefix:
            return forkserver.run("doctor", *patient, *arguments, env=env, cwd=self.folder, timeout=280)
        return subprocess.run(
            [*prefix, sys.executable, "-m", "llmctl", "doctor", *patient, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=env,
            timeout=280,
            check=False,
        )


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Run the doctor in an empty folder, offline by default."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Doctor(folder)


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """Run the stand-in for the Hub, with one small model, acme/tiny, and one that is gated."""
    root = tmp_path / "models"
    make_model(root / "acme" / "tiny")
    make_model(root / "acme" / "gated")
    settings = {
        "tokens": {"hf_good": {"name": "alice", "role": "read"}},
        "repos": {"acme/gated": {"gated": "manual", "allow": ["bob"]}},
    }
    (root / "hub.json").write_text(json.dumps(settings))
    with HubStandin(root) as standin:
        yield standin


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove this machine's proxies and their exceptions."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
