"""The wrong pre-tokenizer pattern of Mistral's older files is corrected, and nothing else is."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.schema import TokenizerSection
from llmctl.errors import UserError
from llmctl.model.info import ModelInfo
from llmctl.model.mistral_pattern import RIGHT, WRONG
from llmctl.model.tokenizer import load_tokenizer
from llmctl.model.tokenizer_file import TokenizerChoice

TEXT = "'The' 2024 it's"


@functools.cache
def _content() -> dict[str, Any]:
    """Return the large vocabulary of a byte-level tokenizer, with a token of three digits."""
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "20", "202", "Th", "The", "'The"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    vocabulary |= {f"<unused{number}>": number for number in range(len(tokens), 100_001)}
    merges = [("2", "0"), ("20", "2"), ("T", "h"), ("Th", "e"), ("'", "The")]
    return {"added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}


def write(folder: Path, pattern: str, **config: Any) -> ModelInfo:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, letters]}
    content = {"version": "1.0", "pre_tokenizer": steps, **_content()}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    config = {"model_type": "mistral3", "transformers_version": "4.50.0", **config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return ModelInfo("acme/tiny", config, ())


def load(folder: Path, info: ModelInfo, **section: Any) -> tuple[list[str], TokenizerChoice | None]:
    """Return the tokens of the text, and the decision about the pattern."""
    choices: list[TokenizerChoice] = []
    arguments = {"trust_remote_code": False}
    tokenizer = load_tokenizer(
        folder, arguments, source="x", section=TokenizerSection(**section), info=info, report=choices.append
    )
    decision = next((choice for choice in choices if choice.key == "fix_mistral_regex"), None)
    return tokenizer.tokenize(TEXT), decision


SPLIT_RIGHT = ["'The", "'", "Ġ", "2", "0", "2", "4", "Ġ", "i", "t", "'", "s"]
SPLIT_WRONG = ["'", "T", "h", "e", "'", "Ġ", "202", "4", "Ġ", "i", "t", "'", "s"]


@pytest.mark.parametrize("source", ["file", "class"])
def test_the_wrong_pattern_is_corrected_and_said_unless_the_key_forbids_it(source: str, tmp_path: Path) -> None:
    info = write(tmp_path, WRONG)
    tokens, decision = load(tmp_path, info, source=source)
    assert tokens == SPLIT_RIGHT
    assert decision is not None
    assert (decision.value, decision.is_note) == (True, True)
    tokens, decision = load(tmp_path, info, source=source, fix_mistral_regex=False)
    assert tokens == SPLIT_WRONG
    assert decision is not None
    assert (decision.value, decision.is_note) == (False, False)


def test_the_right_pattern_and_other_families_are_left_as_they_are(tmp_path: Path) -> None:
    assert load(tmp_path, write(tmp_path, RIGHT)) == (SPLIT_RIGHT, None)
    assert load(tmp_path, write(tmp_path, WRONG, model_type="llama")) == (SPLIT_WRONG, None)


@pytest.mark.parametrize(("version", "is_note"), [("4.50.0", True), ("5.3.0", False)])
def test_an_unknown_pattern_is_kept_and_named_where_transformers_would_warn(
    version: str, is_note: bool, tmp_path: Path
) -> None:
    info = write(tmp_path, r"\p{N}{1,3}|\p{L}+|[^\p{L}\p{N}]", transformers_version=version)
    tokens, decision = load(tmp_path, info)
    assert "202" in tokens
    assert decision is not None
    assert (decision.value, decision.is_note) == (False, is_note)
    assert load(tmp_path, info, fix_mistral_regex=True)[0] == SPLIT_RIGHT


def test_a_correction_that_was_asked_for_is_made_in_any_family_or_refused(tmp_path: Path) -> None:
    info = write(tmp_path, WRONG, model_type="llama")
    assert load(tmp_path, info, fix_mistral_regex=True)[0] == SPLIT_RIGHT
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="fix_mistral_regex"):
        load(tmp_path, info, fix_mistral_regex=True)
