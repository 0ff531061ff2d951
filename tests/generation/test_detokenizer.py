"""Text is released only when neither a character nor a stop string can still change it."""

import pytest

from llmctl.generation.detokenizer import TextAssembler
from support.tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(str(folder))


def pieces(tokenizer: object, text: str, *stops: str) -> tuple[list[str], TextAssembler]:
    assembler = TextAssembler(tokenizer, stops)  # type: ignore[arg-type]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    return [assembler.add(token) for token in ids] + [assembler.finish()], assembler


@pytest.mark.parametrize(
    "text", ["the capital of france", "naïve café", "日本語", "👩‍👩‍👧 family", "tab\tand\nline", " lead"]
)
def test_the_pieces_add_up_to_the_text(tokenizer: object, text: str) -> None:
    parts, assembler = pieces(tokenizer, text)
    assert "".join(parts) == assembler.shown == text


def test_a_character_of_several_tokens_is_released_complete(tokenizer: object) -> None:
    parts, _ = pieces(tokenizer, "a日b")
    assert "日" in "".join(parts)
    assert not any("�" in part for part in parts)


def test_invalid_bytes_are_shown_as_replacement_characters_at_the_end(tokenizer: object) -> None:
    assembler = TextAssembler(tokenizer)  # type: ignore[arg-type]
    half = tokenizer("日", add_special_tokens=False)["input_ids"][:1]  # type: ignore[operator]
    assert [assembler.add(half[0]), assembler.finish()] == ["", "�"]


def test_the_text_ends_before_a_stop_string_that_spans_pieces(tokenizer: object) -> None:
    parts, assembler = pieces(tokenizer, "one two END three", "END")
    assert "".join(parts) == assembler.shown == "one two "
    assert assembler.stopped_by == "END"


def test_a_possible_beginning_of_a_stop_string_is_held_back_and_then_released(tokenizer: object) -> None:
    parts, assembler = pieces(tokenizer, "xEN", "END")
    assert "".join(parts[:-1]) == "x"
    assert parts[-1] == "EN"
    assert assembler.stopped_by is None


def test_the_first_of_several_stop_strings_wins(tokenizer: object) -> None:
    _, assembler = pieces(tokenizer, "a|b#c", "#", "|")
    assert (assembler.shown, assembler.stopped_by) == ("a", "|")


def test_special_tokens_are_not_text(tokenizer: object) -> None:
    parts, _ = pieces(tokenizer, "a<|im_end|>b")
    assert "".join(parts) == "ab"
