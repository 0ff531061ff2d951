"""Fixtures that several packages share. Nothing here touches the network or the user's own files."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from support import forkserver
from support.tiny import ARCHITECTURES, write_model

# Two test processes with two threads each on two cores run many times slower than with one: spinning threads.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


# A collection looks at every object of torch and transformers, and a forked child copies the pages that it looks at.
gc.set_threshold(50_000, 20, 20)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use one worker more than there are cores: tests wait for child processes, servers and timeouts."""
    del config
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True, scope="module")
def _imports_are_not_collected() -> None:
    """Take what is imported out of garbage collection, once the large libraries are there."""
    if "transformers" in sys.modules and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has llmctl's and the Hub's folders to itself, and no configuration of the machine reaches it."""
    for name in [n for n in os.environ if n.startswith(("LLMCTL_", "HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "llmctl-home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command line in a process of its own, through pipes, in an empty folder: `run("generate", "--json")`."""
    folder = tmp_path / "work"
    folder.mkdir()

    def command(*arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
        return forkserver.run(*arguments, stdin=stdin, env=env, cwd=folder)

    return command


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random model of an architecture, made once: `tiny_models("llama")`. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("tiny")

    def make(architecture: str) -> Path:
        folder = root / architecture
        return folder if folder.exists() else write_model(folder, architecture)

    return make


@pytest.fixture
def tiny_copy(tmp_path: Path) -> Callable[..., Path]:
    """A tiny model of one's own, to damage: `tiny_copy("llama", tie_word_embeddings=True)`."""

    def make(architecture: str = "llama", **changes: object) -> Path:
        return write_model(tmp_path / f"copy-{architecture}", architecture, **changes)

    return make


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The real SmolLM2 of the demo extra, converted once for this checkout."""
    from llmctl.model import demo

    home = ROOT / ".demo"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, FileLock(home / "lock"):
        patch.setenv("LLMCTL_HOME", str(home))
        gguf = demo.bundled_gguf()
        assert gguf is not None, "the demo extra is not installed: make test installs it"
        return demo.demo_folder() or demo.convert_demo(gguf)
