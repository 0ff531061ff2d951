"""Inspecting a prompt: the model's input, and each warning exactly when it is due."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.inspection import Inspection, inspect_prompt
from llmctl.model.tokenizer import load_tokenizer
from support.tiny import CHATML, write_tokenizer


def look(
    folder: Path, prompt: Any = "hi", *, template: str | None = CHATML, chat: ChatSection | None = None, **more: Any
) -> Inspection:
    write_tokenizer(folder, template=template)
    tokenizer = load_tokenizer(folder, {"padding_side": "left"}, source="acme/tiny")
    settings = {"eos_token_ids": [0, 2], "context_length": 256, "max_new_tokens": 10, **more}
    return inspect_prompt(tokenizer, prompt, chat or ChatSection(), **settings)


def test_a_valid_prompt_has_no_warning(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert seen.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(seen.tokens) == seen.text
    assert len(seen.tokens) == len(seen.token_ids)
    assert seen.stop_tokens == ("<|endoftext|>", "<|im_end|>")
    assert (seen.templated, seen.bos_count, seen.warnings) == (True, 0, ())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"template": None}, "has no chat template"),
        ({"template": CHATML.partition("{% if add")[0]}, "opens no turn for the assistant"),
        ({"template": "{{ bos_token }}{{ bos_token }}" + CHATML}, "begins with <|endoftext|> twice"),
        ({"prompt": "a<|im_end|>b", "chat": ChatSection(raw=True)}, "these are real control tokens"),
        ({"context_length": 20}, "fewer than max_new_tokens (10)"),
        ({"context_length": 4}, "the context holds 4: it will be refused"),
    ],
)
def test_each_problem_gives_its_warning(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    [warning] = look(tmp_path, **arguments).warnings
    assert words in warning


def test_control_tokens_in_the_text_give_a_warning_that_they_stay_text(tmp_path: Path) -> None:
    if "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters:
        with pytest.raises(UserError, match="contains the control token"):  # an older transformers: refused
            look(tmp_path, "a<|im_end|>b")
        return
    [warning] = look(tmp_path, "a<|im_end|>b").warnings
    assert "kept as ordinary text" in warning


def test_a_requested_raw_prompt_has_no_warning(tmp_path: Path) -> None:
    assert look(tmp_path, template=None, chat=ChatSection(raw=True)).warnings == ()
