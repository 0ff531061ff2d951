"""A tokenizer is what its tokenizer.json says, whatever class the other files name."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.schema import TokenizerSection
from llmctl.errors import ModelError
from llmctl.model.tokenizer import load_tokenizer
from llmctl.model.tokenizer_file import TokenizerChoice
from support.tiny import edit_json
from support.tokenizer_files import FAMILIES, PROBE, write_files

CLASSES = (
    "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer",
    "CohereTokenizer", "GPTNeoXTokenizer", "T5Tokenizer", "XGLMTokenizer", "BertTokenizer", "RobertaTokenizer",
    "DebertaV2Tokenizer", "NllbTokenizer", "ByT5Tokenizer", "PreTrainedTokenizerFast", "NoSuchTokenizer",
)  # fmt: skip


def load(folder: Path, **section: Any) -> tuple[Any, dict[str, TokenizerChoice]]:
    """Load a tokenizer. Return it with the decisions by key."""
    choices: list[TokenizerChoice] = []
    arguments = {"padding_side": "left", "trust_remote_code": False}
    tokenizer = load_tokenizer(
        folder, arguments, source="acme/tiny", section=TokenizerSection(**section), report=choices.append
    )
    return tokenizer, {choice.key: choice for choice in choices}


@pytest.mark.parametrize("tokenizer_class", CLASSES)
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(tokenizer_class: str, tmp_path: Path) -> None:
    for family in FAMILIES:
        file = write_files(tmp_path / family, family, tokenizer_class)
        tokenizer, _ = load(tmp_path / family)
        assert tokenizer(PROBE)["input_ids"] == file.encode(PROBE).ids, family
        assert len(tokenizer) == file.get_vocab_size(), f"{family}: the class adds no tokens"
        assert tokenizer.decode(file.encode(PROBE).ids) == file.decode(
            file.encode(PROBE).ids, skip_special_tokens=False
        )


@pytest.mark.parametrize(
    ("family", "tokenizer_class", "kinds"),
    [
        ("gpt2", "GPT2Tokenizer", ()),
        ("qwen", "Qwen2Tokenizer", ()),
        ("gemma", "GemmaTokenizer", ()),
        ("mistral", "LlamaTokenizer", ()),
        ("llama3", "PreTrainedTokenizerFast", ()),
        ("llama3", "NoSuchTokenizer", ()),
        ("llama3", "GPT2Tokenizer", ("code",)),
        ("llama3", "Qwen2Tokenizer", ("digits",)),
        ("qwen", "GPT2Tokenizer", ("scripts",)),
        ("smollm", "Qwen2Tokenizer", ("spaces and blank lines", "code")),
        ("llama2", "LlamaTokenizer", ("special tokens",)),
        ("gpt2", "GemmaTokenizer", ("spaces and blank lines", "digits", "code", "scripts")),
    ],
)
def test_a_class_that_splits_text_differently_is_named_with_the_kinds_of_text(
    family: str, tokenizer_class: str, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    write_files(tmp_path, family, tokenizer_class)
    _, choices = load(tmp_path)
    choice = choices["tokenizer"]
    assert choice.is_note == bool(kinds)
    assert (tokenizer_class in choice.reason) == bool(kinds)
    assert all(kind in choice.reason for kind in kinds), choice.reason


@pytest.mark.parametrize("tokenizer_class", ["T5Tokenizer", "CTRLTokenizer"])
def test_a_class_that_cannot_be_made_from_the_file_is_named(tokenizer_class: str, tmp_path: Path) -> None:
    file = write_files(tmp_path, "gpt2", tokenizer_class)
    tokenizer, choices = load(tmp_path)
    assert tokenizer(PROBE)["input_ids"] == file.encode(PROBE).ids
    assert choices["tokenizer"].is_note
    assert tokenizer_class in choices["tokenizer"].reason


def test_source_class_takes_what_transformers_makes_of_the_class(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = write_files(tmp_path, "llama3", "GPT2Tokenizer")
    tokenizer, choices = load(tmp_path, source="class")
    ids = tokenizer(PROBE)["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(str(tmp_path))(PROBE)["input_ids"] != file.encode(PROBE).ids
    assert (choices["tokenizer"].value, choices["tokenizer"].is_note) == ("GPT2Tokenizer", False)


@pytest.mark.parametrize("tokenizer_class", ["GemmaTokenizer", "T5Tokenizer"])
def test_a_class_that_fails_on_the_file_or_on_unusual_text_is_an_error_of_the_model(
    tokenizer_class: str, tmp_path: Path
) -> None:
    write_files(tmp_path, "gpt2", tokenizer_class, unk_token="<none>")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    edit_json(tmp_path / "tokenizer.json", added_tokens=[t for t in content["added_tokens"] if t["id"] > 0])
    with pytest.raises(ModelError, match="acme/tiny"):
        load(tmp_path, source="class")


def test_without_a_folder_for_temporary_files_only_the_comparison_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_files(tmp_path, "llama3", "GPT2Tokenizer")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    tokenizer, choices = load(tmp_path)
    assert tokenizer(PROBE)["input_ids"] == file.encode(PROBE).ids
    assert not choices["tokenizer"].is_note


def test_a_file_that_stops_the_library_is_an_error_of_the_model(tmp_path: Path) -> None:
    write_files(tmp_path, "llama3", "GPT2Tokenizer")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    edit_json(tmp_path / "tokenizer.json", post_processor=content["post_processor"] | {"special_tokens": {}})
    for source in ("file", "class"):
        with pytest.raises(ModelError, match="acme/tiny"):
            load(tmp_path, source=source)


@pytest.mark.parametrize(("stated", "actual"), [(False, True), (True, True), (None, True)])
def test_a_beginning_token_follows_the_file_unless_the_class_is_chosen(
    stated: bool | None, actual: bool, tmp_path: Path
) -> None:
    write_files(tmp_path, "llama3", "PreTrainedTokenizerFast", add_bos_token=stated)
    tokenizer, choices = load(tmp_path)
    assert (tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id) == actual
    assert ("add_bos_token" in choices) == (stated is False)
    tokenizer, choices = load(tmp_path, source="class")
    assert (tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id) == (stated is not False)
    assert "add_bos_token" not in choices


def test_an_end_token_that_only_tokenizer_config_asks_for_is_not_added_and_said(tmp_path: Path) -> None:
    write_files(tmp_path, "qwen", "Qwen2Tokenizer", add_eos_token=True)
    tokenizer, choices = load(tmp_path)
    assert tokenizer.eos_token_id not in tokenizer("x")["input_ids"]
    assert (choices["add_eos_token"].value, choices["add_eos_token"].is_note) == (False, True)
    tokenizer, _ = load(tmp_path, source="class")
    assert tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id


def test_flags_of_added_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    greedy = {"content": "<|start|>", "lstrip": True, "rstrip": True, "special": True}
    file = write_files(tmp_path, "gpt2", "PreTrainedTokenizerFast", added_tokens_decoder={"3": greedy})
    tokenizer, _ = load(tmp_path)
    text = "a <|start|> \n b"
    assert tokenizer(text)["input_ids"] == file.encode(text).ids


def test_a_token_that_only_tokenizer_config_has_stays_one_token(tmp_path: Path) -> None:
    own = {"content": "<|tool|>", "special": True}
    file = write_files(tmp_path, "gpt2", "PreTrainedTokenizerFast", added_tokens_decoder={"600": own})
    tokenizer, _ = load(tmp_path)
    assert tokenizer("<|tool|>", add_special_tokens=False)["input_ids"] == [file.get_vocab_size()]


@pytest.mark.parametrize("layout", ["model first", "special_tokens_map.json"])
def test_other_layouts_of_the_files_give_the_same_ids(layout: str, tmp_path: Path) -> None:
    file = write_files(tmp_path, "gpt2", "GPT2Tokenizer", bos_token=None)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}', encoding="utf-8")
    if layout == "model first":
        content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(content.items()))), encoding="utf-8")
    tokenizer, _ = load(tmp_path)
    assert tokenizer(PROBE)["input_ids"] == file.encode(PROBE).ids
    assert tokenizer.bos_token == "<s>"


def test_a_special_token_that_only_the_class_names_is_kept_if_the_file_has_it(tmp_path: Path) -> None:
    write_files(tmp_path / "with", "mistral", "LlamaTokenizer", eos_token=None, bos_token=None)
    tokenizer, _ = load(tmp_path / "with")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    write_files(tmp_path / "without", "gpt2", "GPTNeoXTokenizer", eos_token=None)  # its default is <|endoftext|>
    tokenizer, _ = load(tmp_path / "without")
    assert tokenizer.eos_token_id is None


def test_python_code_of_a_tokenizer_is_not_run_beside_a_tokenizer_json(tmp_path: Path) -> None:
    file = write_files(tmp_path, "gpt2", "OwnTokenizer", auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]})
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    tokenizer, choices = load(tmp_path)
    assert tokenizer(PROBE)["input_ids"] == file.encode(PROBE).ids
    assert choices["tokenizer"].is_note
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_tokenizer_json_is_left_to_transformers(tmp_path: Path) -> None:
    write_files(tmp_path, "gpt2", "ByT5Tokenizer")
    (tmp_path / "tokenizer.json").unlink()
    tokenizer, choices = load(tmp_path)
    assert (type(tokenizer).__name__, choices["tokenizer"].value) == ("ByT5Tokenizer", "ByT5Tokenizer")
