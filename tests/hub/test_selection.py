"""The selection of files, by their names alone."""

import pytest

from llmctl.errors import ModelError, UserError
from llmctl.hub.listing import is_safe_path
from llmctl.hub.selection import Patterns, needed, select

SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def test_one_file_of_weights_goes_before_its_shards() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert needed([*SMALL, "model.safetensors", *shards]) == tuple(sorted([*SMALL, "model.safetensors"]))


def test_shards_come_with_their_index_and_without_the_consolidated_copy() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    names = [*SMALL, *shards, "consolidated.safetensors", "consolidated-00001-of-00001.safetensors"]
    assert needed(names) == tuple(sorted([*SMALL, *shards]))


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "original/consolidated.00.pth",
        "original/params.json",
        "original/tokenizer.model",
        "model.Q4_K_M.gguf",
        "onnx/model.onnx",
        "onnx/config.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "training_args.bin",
        "README.md",
        "LICENSE",
        ".gitattributes",
        "modeling_own.py",
        "model.fp16.safetensors",
        "checkpoint-100/model.safetensors",
        "adapter_model.safetensors",
    ],
)
def test_second_copies_and_pickles_are_not_selected(name: str) -> None:
    assert name not in needed([*SMALL, "model.safetensors", name])


@pytest.mark.parametrize(
    "name",
    [
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "qwen.tiktoken",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "preprocessor_config.json",
        "processor_config.json",
    ],
)
def test_files_of_tokenizers_and_templates_are_selected(name: str) -> None:
    assert name in needed([*SMALL, "model.safetensors", name])


def test_code_is_selected_only_on_request() -> None:
    names = [*SMALL, "model.safetensors", "modeling_own.py", "layers/own.py"]
    assert "modeling_own.py" not in needed(names)
    assert {"modeling_own.py", "layers/own.py"} <= set(needed(names, trust_remote_code=True))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pytorch_model.bin"], "only as pickles"),
        (["model.gguf"], "only as GGUF"),
        (["onnx/model.onnx"], "only as ONNX"),
        (["adapter_model.safetensors"], "only adapter_model.safetensors"),
        ([], "has no weights"),
    ],
)
def test_a_repository_without_loadable_weights_says_what_it_has(names: list[str], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        select("acme/x", [*SMALL, *names], Patterns())
    assert caught.value.hint


def test_include_selects_exactly_the_matches() -> None:
    names = [*SMALL, "model.safetensors", "README.md"]
    assert select("acme/x", names, Patterns(include=("tok*", "README.md"))) == (
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    )


def test_exclude_removes_matches() -> None:
    assert select("acme/x", [*SMALL, "model.safetensors"], Patterns(exclude=("*.json",))) == ("model.safetensors",)


def test_include_never_selects_a_pickle() -> None:
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        select("acme/x", [*SMALL, "pytorch_model.bin"], Patterns(include=("*.bin",)))


def test_patterns_without_any_match_are_an_error() -> None:
    with pytest.raises(UserError, match="all files of acme/x"):
        select("acme/x", [*SMALL, "model.safetensors"], Patterns(include=("nothing*",)))


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "C:/x", "a\\b", "a//b", "./a", "a/.", "", "a\x1bb"])
def test_a_path_that_leaves_the_folder_is_not_safe(path: str) -> None:
    assert not is_safe_path(path)


@pytest.mark.parametrize("path", ["config.json", "a/b.safetensors", "..config", "a..b/c", "ünï.json"])
def test_an_ordinary_path_is_safe(path: str) -> None:
    assert is_safe_path(path)
