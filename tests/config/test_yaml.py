"""YAML: each value means what was written, for the key where it stands, or is an error with its line."""

from pathlib import Path
from typing import Any

import pytest

from llmctl import yaml_reader
from llmctl.config.layers import read_only_file, read_settings
from llmctl.errors import ConfigError


def read(content: str | bytes, tmp_path: Path) -> Any:
    file = tmp_path / "llmctl.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_only_file(file)


def value(settings: Any, key: str) -> Any:
    part = settings.config
    for name in key.split("."):
        part = getattr(part, name)
    return part


WORDS = ["yes", "no", "on", "off", "010", "1:30", "1e3", "1.10", "0x10", "1_000", "2024-01-01", "=", "true", "12345678"]


@pytest.mark.parametrize("word", WORDS)
def test_a_key_for_text_gets_the_text_that_was_written(word: str, tmp_path: Path) -> None:
    settings = read(
        f"model: {{id: {word}, revision: {word}, adapters: [{{id: a/b, revision: {word}}}]}}\n"
        f"generation: {{stop_strings: [{word}]}}\nstructure: {{choices: [{word}, x]}}\n",
        tmp_path,
    )
    config = settings.config
    assert (config.model.id, config.model.revision, config.model.adapters[0].revision) == (word, word, word)
    assert config.generation.stop_strings == [word]
    assert config.structure.choices == [word, "x"]


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("seed: 0x10", "seed", 16),
        ("seed: 0o10", "seed", 8),
        ("seed: 1_000", "seed", 1000),
        ("seed: 1e3", "seed", 1000),
        ("generation: {temperature: 1e-1}", "generation.temperature", 0.1),
        ("generation: {temperature: .5}", "generation.temperature", 0.5),
        ("model: {trust_remote_code: yes}", "model.trust_remote_code", True),
        ("model: {trust_remote_code: off}", "model.trust_remote_code", False),
        ("quantization: {bits: no}", "quantization.bits", None),
        ("chat: {system: ~}", "chat.system", None),
        ('chat: {system: "null"}', "chat.system", "null"),
        ('chat: {system: "a\\x07b"}', "chat.system", "a\x07b"),
        ("generation: {extra_eos_tokens: [7, no]}", "generation.extra_eos_tokens", [7, "no"]),
        ("load: {max_memory: {0: 4GB, cpu: 8GB}}", "load.max_memory", {0: "4GB", "cpu": "8GB"}),
        ("structure: {json_schema: {properties: {1: {type: integer}}}}", "structure.json_schema",
         {"properties": {"1": {"type": "integer"}}}),
        ("seed: &a 5\ngeneration: {max_new_tokens: *a}", "generation.max_new_tokens", 5),
        ("draft: &d {id: a/b, revision: x}\nmodel: {<<: *d, revision: 1.0}", "model.revision", "1.0"),
        ("chat: {template_kwargs: {<<: [{a: 1}, {a: 2, b: 2}]}}", "chat.template_kwargs", {"a": 1, "b": 2}),
        ("\ufeffseed: 5\r\ngeneration:\r\n  top_k: 3\r\n", "generation.top_k", 3),
        ("seed: 7\n".encode("utf-16"), "seed", 7),
        ("%YAML 1.1\n---\nseed: 7\n", "seed", 7),
    ],
)  # fmt: skip
def test_a_value_has_one_meaning_for_its_key(text: str | bytes, key: str, meant: Any, tmp_path: Path) -> None:
    assert value(read(text, tmp_path), key) == meant


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("seed: 010", 1, "seed", "write 10"),
        ("seed: 1:30", 1, "seed", "1:30 is"),
        ("generation:\n  max_new_tokens: 0b11", 2, "generation.max_new_tokens", "0b11"),
        ("seed: 2024-13-45", 1, "seed", "2024-13-45"),
        ("seed: true", 1, "seed", "must be a number"),
        ("seed: " + "9" * 5000, 1, "seed", "not a number that can be read"),
        ("chat:\n  template_kwargs:\n    enable_thinking: no", 3, "chat.template_kwargs", "true or false"),
        ("chat:\n  template_kwargs:\n    a: 1\n    a: 2", 4, "chat.template_kwargs", "given twice, first on line 3"),
        ("structure:\n  json_schema:\n    enum:\n      - 1:30", 4, "structure.json_schema", "1:30"),
        ("generation:\n  <<: 5", 2, "generation.<<", "must be a mapping"),
        ("chat: {template_kwargs: &x {a: *x}}", 1, "chat.template_kwargs", "contains itself"),
        ("seed: !!binary aGk=", 1, "seed", "!!binary"),
        ("seed: !!python/object:os.system x", 1, "seed", "!!python/object:os.system"),
        ("? [a, b]\n: c", 1, "", "a key must be text"),
        ('chat: {system: "\\ud800"}', 1, "chat.system", "lone surrogate"),
        ("seed: 1\n# \x07\n", 2, "", "U+0007"),
        ("generation:\n\ttop_p: 0.5", 2, "", "tab"),
        ("seed: 1\n---\nseed: 2", 2, "", "another document"),
        ("seed: *x", 1, "", "undefined alias"),
        (b"chat: {system: h\xe9}", 0, "", "not UTF-8"),
        ("chat: {template_kwargs: " + "[" * 2000 + "]" * 2000 + "}", 0, "", "nested too deeply"),
    ],
)
def test_a_value_with_two_meanings_or_none_is_an_error_with_its_line(
    text: str | bytes, line: int, key: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        read(text, tmp_path)
    [problem] = error.value.problems
    where = str(tmp_path / "llmctl.yaml")
    assert (problem.where, problem.key) == (f"{where}:{line}" if line else where, key)
    assert words in problem.message


def test_a_text_of_two_meanings_in_a_variable_or_after_set_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_settings(environ={"LLMCTL_SEED": "1:30"}, assignments=["seed=010"], folder=tmp_path)
    assert {(problem.where, problem.key) for problem in error.value.problems} == {
        ("LLMCTL_SEED", "seed"),
        ("--set", "seed"),
    }


def test_bytes_of_a_variable_that_the_locale_does_not_know_are_read_as_utf_8(tmp_path: Path) -> None:
    latin = {"LLMCTL_CHAT__SYSTEM": "h\udcc3\udca9llo"}
    assert read_settings(environ=latin, folder=tmp_path).config.chat.system == "h\u00e9llo"
    with pytest.raises(ConfigError, match="LLMCTL_CHAT__SYSTEM"):
        read_settings(environ={"LLMCTL_CHAT__SYSTEM": "h\udcff"}, folder=tmp_path)


@pytest.mark.parametrize("word", [*WORDS, "null", "~", "a: b", "'x'", "\u65e5\n\x07"])
def test_what_llmctl_writes_it_reads_back(word: str) -> None:
    written = {"chat": {"system": word, "template_kwargs": {"a": word, "b": [True, 1.5, None]}}}
    node = yaml_reader.parse(yaml_reader.dump(written))
    assert node is not None
    assert yaml_reader.read(node, Any, line=1) == written
