"""`GET /defaults`: the values that the page shows in empty settings are those of a request that sets none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.server.chat_body import ChatBody
from llmctl.server.registry import ModelRegistry
from llmctl.server.routes import open_paths
from llmctl.server.routes.chat import prepare_chat
from llmctl.server.routes.completions import CompletionBody, prepare_text
from llmctl.server.routes.defaults import defaults
from llmctl.server.worker import Worker


def registry_of(model: Path, **sections: Any) -> ModelRegistry:
    loaded = llmctl.load(model, load={"dtype": "float32"}, **sections)
    return ModelRegistry("tiny", loaded, Worker(loaded, max_queue=1, max_sequences=1), 1, 60.0)


def test_defaults_are_the_configured_values(tiny_models: Callable[[str], Path]) -> None:
    generation = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 99}
    registry = registry_of(
        tiny_models("llama"),
        generation=generation,
        chat={"system": "Be brief."},
        seed=7,
        tokenizer={"model_max_length": 64},
    )
    assert defaults(registry) == {
        "model": "tiny",
        "max_model_len": 64,
        "system": "Be brief.",
        "max_tokens": 99,
        "seed": 7,
        "temperature": 0.6,
        "top_p": 1.0,
        "top_k": 20,
        "min_p": 0.0,
    }


def test_settings_that_a_request_omits_come_from_the_configuration(tiny_models: Callable[[str], Path]) -> None:
    registry = registry_of(
        tiny_models("llama"),
        generation={"temperature": 0.6, "max_new_tokens": 9, "stop_strings": ["zz"]},
        chat={"system": "Be brief.", "prefill": "Well"},
        seed=7,
    )
    conversation = ChatBody.model_validate({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]})
    text = CompletionBody.model_validate({"model": "tiny", "prompt": "Hi"})
    try:
        [(chat, _)] = prepare_chat(registry, conversation)[0].requests
        [(plain, _)] = prepare_text(registry, text).requests
    finally:
        registry.prompts.close()
    for request in (chat, plain):
        assert (request.seed, request.stop_strings, request.arguments["temperature"]) == (7, ("zz",), 0.6)
    shown = registry.loaded.tokenizer.decode(list(chat.prompt.ids))
    assert "Be brief." in shown
    assert (chat.budget, chat.prompt.prefill) == (9, "Well")
    assert registry.loaded.tokenizer.decode(list(plain.prompt.ids)) == "Hi"
    assert plain.budget == 16, "as in OpenAI's API"


def test_greedy_decoding_is_the_temperature_0(tiny_models: Callable[[str], Path]) -> None:
    shown = defaults(registry_of(tiny_models("llama"), generation={"temperature": 0}))
    assert (shown["temperature"], shown["top_p"], shown["top_k"], shown["min_p"], shown["seed"]) == (0, *[None] * 4)


@pytest.mark.parametrize("path", ["/defaults", "/tokenize"])
def test_the_settings_need_a_key(path: str) -> None:
    assert path not in open_paths()
