"""A prompt model has everything except the weights, and a loaded model keeps the inputs that it was loaded from."""

from collections.abc import Callable
from pathlib import Path

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.errors import UserError
from llmctl.generation.overrides import with_generation
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from llmctl.loading.loader import load_prepared
from llmctl.loading.model import LoadedModel, PromptModel, load_prompt_model
from llmctl.loading.prepare import prepare

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def prompt_model(tiny_models: Tiny) -> PromptModel:
    settings = {"model": {"id": str(tiny_models("llama"))}, "generation": {"max_new_tokens": 5, "temperature": 0.5}}
    return load_prompt_model(prepare(settings_from_mapping(settings)))


def test_requests_are_made_without_weights(prompt_model: PromptModel) -> None:
    assert not isinstance(prompt_model, LoadedModel)
    request = make_request(prompt_model, Prompt((5, 6, 7)))
    assert (request.prompt.ids, request.budget, request.arguments["temperature"]) == ((5, 6, 7), 5, 0.5)
    assert request.arguments["eos_token_id"] == list(prompt_model.eos_token_ids)
    assert request.arguments["pad_token_id"] == prompt_model.tokenizer.pad_token_id


def test_the_context_limits_a_request(prompt_model: PromptModel) -> None:
    assert prompt_model.context_length == prompt_model.info.context_length
    with pytest.raises(UserError) as error:
        make_request(prompt_model, Prompt((5,) * ((prompt_model.context_length or 0) + 1)))
    assert error.value.details["context_length"] == prompt_model.context_length


def test_overrides_replace_the_inputs_of_a_copy_only(prompt_model: PromptModel) -> None:
    changed = with_generation(prompt_model, {"max_new_tokens": 9, "temperature": 0}, seed=3)
    assert type(changed) is PromptModel
    assert (changed.config.generation.max_new_tokens, changed.plan.seed) == (9, 3)
    assert changed.plan.generation_kwargs["do_sample"] is False
    assert (prompt_model.config.generation.max_new_tokens, prompt_model.plan.seed) == (5, None)


def test_a_loaded_model_keeps_the_inputs_to_load_it_and_its_draft_again(tiny_models: Tiny) -> None:
    folder = str(tiny_models("llama"))
    loaded = llmctl.load(folder, draft={"id": folder}, load={"dtype": "float32"}, generation={"max_new_tokens": 4})
    assert loaded.draft is not None
    assert loaded.prepared.draft is loaded.draft.prepared
    again = load_prepared(loaded.prepared)
    assert again.draft is not None
    assert again.plan == loaded.plan
    assert llmctl.generate(again, "once").token_ids == llmctl.generate(loaded, "once").token_ids
