"""LangChain's standard test of images, with its unmodified ChatOpenAI and a tiny random Qwen3-VL.

The suite downloads its picture from GitHub; here it gets one of the tests.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

SERVER_PYTHON = os.environ["SERVER_PYTHON"]
TESTS = Path(__file__).parents[2]
BUILD = """
import sys
from pathlib import Path
from support.vision.build import build
from support.vision.pictures import picture
folder = Path(sys.argv[1])
build("qwen3_vl", folder / "tiny-vl")
picture(0).save(folder / "picture.png")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint and a picture, which need llmctl's environment."""
    made = tmp_path_factory.mktemp("images")
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    subprocess.run([SERVER_PYTHON, "-c", BUILD, str(made)], env={**os.environ, "PYTHONPATH": path}, check=True)
    return made


@pytest.fixture(scope="module")
def images_address(folder: Path) -> Iterator[str]:
    from support.served import served

    with served(str(folder / "tiny-vl"), python=SERVER_PYTHON) as url:
        yield url


class TestImages(ChatModelIntegrationTests):
    """ChatOpenAI with a model that takes images. The other tests of the suite need one that was trained."""

    @pytest.fixture(autouse=True)
    def _server(
        self, request: pytest.FixtureRequest, images_address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if request.node.originalname != "test_image_inputs":
            pytest.skip("run with SmolLM2")
        picture = SimpleNamespace(content=(folder / "picture.png").read_bytes())
        monkeypatch.setattr(httpx, "get", lambda *_, **__: picture)
        monkeypatch.setenv("OPENAI_API_KEY", "not-needed")
        monkeypatch.setenv("OPENAI_API_BASE", f"{images_address}/v1")

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny-vl", "temperature": 0, "max_tokens": 20, "max_retries": 0, "stream_usage": True}

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def enable_vcr_tests(self) -> bool:
        return False
