"""What the tests of vLLM share: one that is a small script."""

import os
from pathlib import Path

import pytest

from support.fake_vllm import write_fake_vllm


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python of this process has a vLLM that does what the variable FAKE_VLLM says. Gives a file that will hold the
    process ids of its server and of the worker below it."""
    folder = write_fake_vllm(tmp_path / "fake-vllm")
    pids = tmp_path / "pids"
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(pids))
    return pids
