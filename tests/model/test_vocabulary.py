"""Token ids for which a model has no embedding are refused where they occur."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.errors import ModelError, UserError
from llmctl.generation.inspection import inspect_prompt
from llmctl.generation.prompt import Prompt, encode_prompt
from llmctl.generation.request import make_request
from llmctl.loading.model import PromptModel, load_prompt_model
from llmctl.loading.prepare import prepare
from llmctl.server.http_errors import RequestError, to_request_error
from llmctl.server.registry import ModelRegistry
from llmctl.server.routes.completions import CompletionBody
from support.tiny import edit_json

Tiny = Callable[[str], Path]


@pytest.fixture
def folder(tiny_models: Tiny, tmp_path: Path) -> Path:
    """A copy of a tiny model."""
    return Path(shutil.copytree(tiny_models("llama"), tmp_path / "model"))


def rows(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def add_token(folder: Path, token: str) -> int:
    """Add a special token after the last id. Return its id."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    number = max([*content["model"]["vocab"].values(), *(one["id"] for one in content["added_tokens"])]) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [*content["added_tokens"], {"id": number, "content": token, **flags}]
    edit_json(folder / "tokenizer.json", added_tokens=added)
    return int(number)


def load(folder: Path, **sections: Any) -> PromptModel:
    return load_prompt_model(prepare(settings_from_mapping({"model": {"id": str(folder)}, **sections})))


def test_ids_of_ordinary_text_beyond_the_embedding_are_refused_when_loading(folder: Path) -> None:
    size = rows(folder)
    edit_json(folder / "config.json", vocab_size=size - 20)
    for chat in ({}, {"raw": True}):
        with pytest.raises(ModelError) as error:
            load(folder, chat=chat)
        assert error.value.details == {"token_id": size - 1, "embedding_rows": size - 20}


def test_a_single_token_far_beyond_the_others_is_found(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"] = 90_000
    edit_json(folder / "tokenizer.json", model=content["model"])
    with pytest.raises(ModelError) as error:
        load(folder)
    assert error.value.details["token_id"] == 90_000


def test_a_token_that_no_text_produces_may_lie_beyond_the_embedding(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"]["<unused 1>"] = rows(folder)
    edit_json(folder / "tokenizer.json", model=content["model"])
    assert load(folder).tokenizer.convert_tokens_to_ids("<unused 1>") == rows(folder)


def test_a_token_of_the_chat_template_is_refused_when_loading_if_the_template_is_used(folder: Path) -> None:
    number = add_token(folder, "<|turn|>")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}")
    with pytest.raises(ModelError) as error:
        load(folder)
    assert error.value.details["token_id"] == number
    load(folder, chat={"raw": True})


def test_a_token_at_the_beginning_of_every_text_is_refused_when_loading(folder: Path) -> None:
    number = add_token(folder, "<|begin|>")
    piece = [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    token = {"<|begin|>": {"id": "<|begin|>", "ids": [number], "tokens": ["<|begin|>"]}}
    edit_json(
        folder / "tokenizer.json",
        post_processor={"type": "TemplateProcessing", "single": piece, "pair": piece, "special_tokens": token},
    )
    with pytest.raises(ModelError) as error:
        load(folder)
    assert error.value.details["token_id"] == number


def test_an_added_token_without_an_embedding_is_refused_in_the_prompt_that_has_it(folder: Path) -> None:
    number = add_token(folder, "<image>")
    model = load(folder)
    make_request(model, encode_prompt(model.tokenizer, "once", model.config.chat))
    raw = model.config.chat.model_copy(update={"raw": True})
    for prompt in (encode_prompt(model.tokenizer, "once <image>", raw), Prompt((5, number))):
        with pytest.raises(UserError) as error:
            make_request(model, prompt)
        assert error.value.details["token_id"] == number
    inspected = inspect_prompt(
        model.tokenizer, "<image>", raw, eos_token_ids=(), context_length=None, max_new_tokens=1,
        embedding_rows=model.info.embedding_rows,
    )  # fmt: skip
    assert any(str(number) in warning for warning in inspected.warnings)


def test_a_server_refuses_such_a_token_in_a_text_in_ids_and_in_a_bias(folder: Path) -> None:
    number = add_token(folder, "<image>")
    model: Any = load(folder)
    registry = ModelRegistry("tiny", model, worker=cast("Any", None), created=0, request_seconds=1)
    with pytest.raises(UserError) as error:
        registry.requests(model, CompletionBody(model="tiny", prompt="x"), Prompt((5, number)))
    assert to_request_error(error.value).status == 400
    with pytest.raises(RequestError):
        registry.check_token_ids([number], param="logit_bias")
    registry.check_token_ids([number - 1], param="logit_bias")


def test_a_scored_text_with_such_a_token_is_refused(folder: Path) -> None:
    add_token(folder, "<image>")
    loaded = llmctl.load(folder)
    with pytest.raises(UserError):
        llmctl.score(loaded, "once <image>")
    assert llmctl.score(loaded, "once upon").logprobs


def test_a_pad_token_without_an_embedding_is_replaced(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token="[PAD]")
    tokenizer = load(folder).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id < rows(folder)
