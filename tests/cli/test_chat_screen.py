"""A conversation on the screen, without a terminal."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import llmctl
from llmctl.cli._chat_screen import Conversation
from llmctl.cli._render import Output
from llmctl.errors import MachineError
from llmctl.generation.chat.conversation import ChatSession
from llmctl.loading import loader
from llmctl.loading.prepare import Prepared


class Weights:
    """The part of a model that was loaded before memory ran out."""


def test_a_model_that_does_not_fit_is_gone_before_the_old_one_is_loaded_again(
    tiny_models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation={"max_new_tokens": 4})
    session = ChatSession(loaded)
    old, source = weakref.ref(loaded.model), loaded.plan.source
    del loaded
    partial: list[weakref.ref[Weights]] = []

    def load(name: str) -> llmctl.LoadedModel:
        weights = Weights()
        partial.append(weakref.ref(weights))
        assert old() is None, "the old model is gone before the new one is loaded"
        try:
            raise RuntimeError("CUDA error: out of memory")
        except RuntimeError as error:
            raise MachineError(f"memory ran out while loading {name}") from error

    def load_again(prepared: Prepared, real: Callable[..., llmctl.LoadedModel] = loader.load_prepared) -> object:
        assert partial[0]() is None, "the traceback of the failure holds the new model"
        return real(prepared)

    monkeypatch.setattr(loader, "load_prepared", load_again)
    conversation = Conversation(session, Output(), load)
    with pytest.raises(MachineError, match="memory ran out while loading org/large"):
        conversation.switch_model("org/large")
    assert session.loaded.plan.source == source
    assert session.send("the capital of france").token_ids
