"""A fake vLLM for the tests."""

import os
from pathlib import Path

import pytest

from support.fake_vllm import write_fake_vllm


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a fake vLLM, whose behaviour the variable FAKE_VLLM sets. Return the file for the process ids of its
    server and worker."""
    folder = write_fake_vllm(tmp_path / "fake-vllm")
    pids = tmp_path / "pids"
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(pids))
    return pids
