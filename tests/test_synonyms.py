"""The table of other tools' names: what works, what is named, and in every place where a name can be written."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import llmctl
from llmctl.config.layers import read_only_file, read_settings, settings_from_mapping
from llmctl.config.schema import all_keys
from llmctl.errors import ConfigError
from llmctl.synonyms import COMMAND_ADVICE, COMMANDS, find_synonym, names_of, same_key, values_of


def test_every_name_means_a_key_of_the_schema_and_is_none_itself() -> None:
    keys = all_keys()
    for key in keys:
        for name in names_of(key):
            assert find_synonym(name) is not None
            assert same_key(f"{key.rpartition('.')[0]}.{name}".lstrip(".")) == key, name
            assert f"{key.rpartition('.')[0]}.{name}" not in keys, name
        for name, value in values_of(key).items():
            section, _, leaf = key.rpartition(".")
            assert settings_from_mapping({section: {leaf: value}}).is_set(key), name


def test_no_command_is_named_twice() -> None:
    assert not COMMANDS.keys() & COMMAND_ADVICE.keys()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("generation:\n  stop: END\n", "generation.stop_strings", ["END"]),
        ("generation:\n  num_predict: 7\n", "generation.max_new_tokens", 7),
        ("quantization:\n  bnb_4bit_quant_type: fp4\n", "quantization.quant_type", "fp4"),
        ("load:\n  torch_dtype: bfloat16\n", "load.dtype", "bfloat16"),
        ("chat:\n  enable_thinking: true\n", "chat.thinking", True),
        ("random_seed: 3\n", "seed", 3),
    ],
)
def test_a_file_may_have_another_tools_name_in_the_right_section(
    text: str, key: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    settings = read_only_file(file)
    section, _, leaf = key.rpartition(".")
    config = settings.config
    assert getattr(getattr(config, section) if section else config, leaf) == value
    assert settings.origin(key) == f"{file}:{2 if section else 1}"


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("generation.num_ctx", "tokenizer.model_max_length"),
        ("temp", "generation.temperature"),
        ("quantization.load_in_4bit", "quantization.bits: 4bit"),
        ("generation.mirostat", "min_p"),
        ("load.n_gpu_layers", "load.max_memory"),
    ],
)
def test_a_name_that_does_not_work_is_an_error_with_the_right_one(key: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(assignments=[f"{key}=1"], environ={})
    [problem] = caught.value.problems
    assert problem.key == key
    assert named in problem.message


def test_a_key_and_its_other_name_together_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("generation:\n  max_tokens: 3\n  max_new_tokens: 4\n")
    with pytest.raises(ConfigError, match=r"a.yaml:3: generation.max_new_tokens: .*a.yaml:2"):
        read_only_file(file)
    with pytest.raises(ConfigError):
        settings_from_mapping({"generation": {"max_tokens": 3, "max_new_tokens": 4}})


def test_variables_and_set_take_the_same_names() -> None:
    settings = read_settings(assignments=["generation.temp=0.5"], environ={"LLMCTL_GENERATION__TOPK": "9"})
    assert (settings.config.generation.temperature, settings.config.generation.top_k) == (0.5, 9)


@pytest.mark.parametrize(
    ("setting", "named"),
    [("num_ctx", "tokenizer.model_max_length"), ("stream", "llmctl.stream"), ("load_in_4bit", "quantization.bits")],
)
def test_a_setting_that_is_none_of_a_call_is_named(setting: str, named: str) -> None:
    with pytest.raises(llmctl.UserError) as caught:
        llmctl.generate(cast("Any", SimpleNamespace(model=object())), "x", **{setting: 1})
    assert setting in caught.value.message
    assert named in str(caught.value.hint)
