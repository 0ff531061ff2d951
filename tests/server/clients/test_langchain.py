"""LangChain's standard suite for chat models, with its unmodified ChatOpenAI.

Expected failures have their reasons here: a model of 135 million parameters has limits.
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
        monkeypatch.setenv("OPENAI_API_KEY", "not-needed")
        monkeypatch.setenv("OPENAI_API_BASE", f"{address}/v1")

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # a model this small calls the same tool twice, and the suite counts calls
        once = {"parallel_tool_calls": False}
        # the penalty prevents endless repetition
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

    @pytest.mark.xfail(reason="SmolLM2-135M was not trained for tools and calls one only if it must")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="json_object allows any object, and SmolLM2-135M writes one with the wrong values")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
