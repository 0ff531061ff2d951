"""LangChain's standard suite for chat models, with its unmodified ChatOpenAI.

What is skipped is named here with its reason. A model of 135 million parameters does what it must, and not much more.
"""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    """ChatOpenAI with SmolLM2-135M behind `llmctl serve`."""

    @pytest.fixture(autouse=True)
    def _server(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "none is asked for on this machine")
        monkeypatch.setenv("OPENAI_API_BASE", f"{address}/v1")

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        once = {"parallel_tool_calls": False}  # so small a model calls the same tool twice, and the suite counts calls
        # the penalty keeps it from saying the same without end
        fixed = {"temperature": 0, "frequency_penalty": 0.5, "max_tokens": 400, "max_retries": 0, "stream_usage": True}
        return {"model": "smollm2", **fixed, "model_kwargs": once}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def enable_vcr_tests(self) -> bool:
        return False

    @pytest.mark.xfail(reason="SmolLM2-135M was never trained for tools: it calls one only where it must")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="json_object asks for any object: SmolLM2-135M writes one, with other values than asked")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
