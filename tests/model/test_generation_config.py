"""The checks of generation_config.json: every field of transformers has a use, and no value can break an answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.model.generation_config import LIMIT_BYTES, GenerationDefaults, LeftOut, check_generation_defaults
from llmctl.model.generation_config import parse_generation_defaults as parse
from llmctl.model.generation_config import read_generation_defaults as read
from llmctl.model.generation_fields import FIELDS

CONFIG = {"vocab_size": 100}


def check(**values: Any) -> GenerationDefaults:
    return check_generation_defaults(values, CONFIG)


def names(defaults: GenerationDefaults) -> list[str]:
    return [one.name for one in defaults.left_out]


def test_every_field_of_transformers_has_a_use() -> None:
    from transformers import GenerationConfig

    assert sorted(set(vars(GenerationConfig())) - set(FIELDS)) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", "0.7", 0.7),
        ("temperature", " 1e-2 ", 0.01),
        ("temperature", 1, 1.0),
        ("top_p", 0, 1e-6),
        ("top_k", -1, 0),
        ("top_k", "40", 40),
        ("top_k", 40.0, 40),
        ("do_sample", "True", True),
        ("do_sample", 0, False),
        ("early_stopping", "never", "never"),
        ("eos_token_id", 3, [3]),
        ("eos_token_id", "3", [3]),
        ("eos_token_id", [3, "4", 3, 4.0], [3, 4]),
        ("stop_strings", "x", ["x"]),
        ("bad_words_ids", [[3, 3], [4]], [[3, 3], [4]]),
        ("sequence_bias", [[[3, "4"], "2"]], [[[3, 4], 2.0]]),
        ("sequence_bias", {"(3, 4)": 2, "(5,)": -1.5}, [[[3, 4], 2.0], [[5], -1.5]]),
    ],
)
def test_values_are_brought_to_their_types(name: str, value: Any, expected: Any) -> None:
    defaults = check(**{name: value})
    assert (defaults.values, defaults.left_out) == ({name: expected}, ())
    assert type(defaults.values[name]) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", 101),
        ("temperature", "warm"),
        ("temperature", True),
        ("temperature", [0.7]),
        ("temperature", float("nan")),
        ("temperature", "inf"),
        ("temperature", 10**400),
        ("top_k", 1.5),
        ("top_k", -2),
        ("top_p", 1.01),
        ("typical_p", 0),
        ("eta_cutoff", 1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-40),
        ("do_sample", "maybe"),
        ("do_sample", 2),
        ("eos_token_id", -1),
        ("eos_token_id", 100),
        ("eos_token_id", {"a": 1}),
        ("min_new_tokens", -1),
        ("stop_strings", ""),
        ("stop_strings", [7]),
        ("stop_strings", "\ud800"),
        ("suppress_tokens", [[1]]),
        ("bad_words_ids", [1]),
        ("bad_words_ids", [[]]),
        ("sequence_bias", [[[1], float("inf")]]),
        ("sequence_bias", {"1": 2.0}),
        ("sequence_bias", {"__import__('os')": 2.0}),
        ("penalty_alpha", 0.6),
        ("num_beams", 2),
        ("max_length", 4096),
    ],
)
def test_a_value_that_cannot_be_used_is_left_out_with_a_reason(name: str, value: Any) -> None:
    defaults = check(**{name: value, "top_h": 0.5})
    assert defaults.values == {"top_h": 0.5}
    [left_out] = defaults.left_out
    assert left_out.name == name
    assert left_out.reason
    json.dumps(vars(left_out), allow_nan=False)


def test_values_that_turn_a_field_off_and_fields_without_effect_are_not_reported() -> None:
    off = {"num_beams": 1, "use_cache": True, "penalty_alpha": 0.0, "output_scores": False, "num_beam_groups": 1}
    assert check(**off, pad_token_id=0, bos_token_id=[1], transformers_version="9", max_time=None, foo=None) == check()


def test_unknown_fields_are_one_entry_that_shows_their_names_safely() -> None:
    [unknown] = check(**{f"x{number}\n\u202e": number for number in range(9)}).left_out
    assert unknown.value.endswith(" and 4 more")
    assert unknown.value.isprintable()
    assert not unknown.changes_text


def test_long_values_are_shown_short_and_on_one_line() -> None:
    [left_out] = check(penalty_alpha="a\nb" * 1000).left_out
    assert len(left_out.value) < 80
    assert left_out.value.isprintable()


def test_tokens_are_left_out_where_the_size_of_the_vocabulary_is_unknown() -> None:
    defaults = check_generation_defaults({"suppress_tokens": [1], "eos_token_id": 7}, {})
    assert (defaults.values, names(defaults)) == ({"eos_token_id": [7]}, ["suppress_tokens"])


def test_lists_that_would_forbid_every_token_are_left_out() -> None:
    defaults = check(suppress_tokens=list(range(60)), bad_words_ids=[[token] for token in range(50, 100)])
    assert (defaults.values, names(defaults)) == ({}, ["suppress_tokens", "bad_words_ids"])


def test_long_lists_are_checked_in_linear_time() -> None:
    ids = list(range(50)) * 4000
    assert check(eos_token_id=ids).eos_token_ids == tuple(range(50))


def test_min_new_tokens_replaces_min_length() -> None:
    defaults = check(min_length=9, min_new_tokens=3)
    assert (defaults.values, names(defaults)) == ({"min_new_tokens": 3}, ["min_length"])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"a": "' + b"a" * LIMIT_BYTES + b'"}']
)
def test_a_file_that_cannot_be_read_is_left_out_and_config_json_counts(content: bytes) -> None:
    defaults = parse(content, {**CONFIG, "eos_token_id": 5})
    assert (defaults.eos_token_ids, names(defaults)) == ((5,), ["generation_config.json"])


def test_a_byte_order_mark_is_accepted() -> None:
    assert parse(b'\xef\xbb\xbf{"top_k": 3}', CONFIG).values == {"top_k": 3}


def test_without_the_file_the_settings_are_those_in_config_json_as_in_transformers() -> None:
    from transformers import GenerationConfig, LlamaConfig

    config = {"vocab_size": 100, "eos_token_id": None, "temperature": 0.5, "foo": 1, "text_config": {"eos_token_id": 4}}
    defaults = parse(None, config)
    assert (defaults.values, defaults.left_out) == ({"eos_token_id": [4], "temperature": 0.5}, ())
    assert defaults.source("temperature") == "the model's config.json"
    theirs = GenerationConfig.from_model_config(LlamaConfig(eos_token_id=4))
    assert theirs.eos_token_id == 4
    assert parse(b"{}", config).values == {}, "the file takes the place of config.json as a whole"


def test_a_repositorys_own_generate_is_reported(tmp_path: Path) -> None:
    (tmp_path / "custom_generate").mkdir()
    assert names(read(tmp_path, CONFIG)) == ["custom_generate"]


def test_the_source_of_a_value_shows_how_it_was_written() -> None:
    defaults = check(temperature="0.7", top_k=3)
    assert defaults.source("temperature") == "the model's generation_config.json, written as '0.7'"
    assert defaults.source("top_k") == "the model's generation_config.json"
    assert check(max_length=7).left_out == (LeftOut("max_length", "7", FIELDS["max_length"].reason, False),)
