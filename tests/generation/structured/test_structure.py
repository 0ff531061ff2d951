"""Structured answers: enforced structures, refused ones, and the exact text that the structure saw."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

import llmctl
from llmctl.config import StructureSection
from llmctl.config.schema import Config
from llmctl.errors import ConfigError, UserError
from llmctl.generation.overrides import with_generation
from llmctl.generation.pieces import text_of
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from llmctl.generation.structured.constraint import StructureProcessor, processors
from llmctl.generation.structured.structure import check_structure, make_structure, parse_json

Tiny = Callable[[str], Path]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def loaded(tiny_models: Tiny) -> llmctl.LoadedModel:
    return llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation={"temperature": 1.5, "top_k": 0})


def answer(loaded: llmctl.LoadedModel, tokens: int = 120, seed: int = 1, **structure: Any) -> llmctl.Completion:
    return llmctl.generate(with_generation(loaded, {}, structure=structure), "x", max_new_tokens=tokens, seed=seed)


def refusal(schema: Any) -> str:
    with pytest.raises(UserError) as error:
        make_structure(StructureSection(json_schema=schema))
    return error.value.message


# -- enforced structures


def test_the_answer_is_one_of_the_choices(loaded: llmctl.LoadedModel) -> None:
    choices = ["yes", "no", "a, b", "yes/no (*)", 'say "é"\n<b>', "<|im_end|>"]
    texts = {answer(loaded, seed=seed, choices=choices).text for seed in range(12)}
    assert texts <= set(choices)
    assert len(texts) > 2


def test_an_answer_that_can_only_end_ends_at_once(loaded: llmctl.LoadedModel) -> None:
    done = answer(loaded, tokens=8, regex="no")
    assert (done.text, done.finish_reason) == ("no", "stop")
    assert not set(done.token_ids) & set(loaded.eos_token_ids), "no token is spent on the end"


def test_an_answer_that_may_end_or_go_on_can_do_both(loaded: llmctl.LoadedModel) -> None:
    lengths = {len(answer(loaded, seed=seed, regex="a{1,9}").text) for seed in range(20)}
    assert lengths <= set(range(1, 10))
    assert len(lengths) > 2


def test_a_regex_is_matched_from_end_to_end(loaded: llmctl.LoadedModel) -> None:
    done = answer(loaded, regex=r"[0-9]{4}-(0[1-9]|1[0-2])-[0-9]{2}")
    assert re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])-\d{2}", done.text)


def test_a_grammar_is_followed(loaded: llmctl.LoadedModel) -> None:
    grammar = 'start: sum\nsum: NUMBER (" + " NUMBER){1,3} " = " NUMBER\nNUMBER: /[1-9][0-9]?/'
    assert re.fullmatch(r"\d+( \+ \d+){1,3} = \d+", answer(loaded, grammar=grammar).text)


def test_json_of_a_schema_parses_and_has_its_keys(loaded: llmctl.LoadedModel) -> None:
    value = json.loads(answer(loaded, json_schema=PERSON).text)
    assert set(value) == {"name", "age"}
    assert value["age"] >= 0


def test_no_other_keys_are_generated_unless_the_schema_mentions_them() -> None:
    more = '{"name": "a", "age": 1, "x": 1}'
    assert not accepts(PERSON, more)
    assert not accepts({"anyOf": [PERSON, {"type": "null"}]}, more)
    assert not accepts({"$defs": {"p": PERSON}, "$ref": "#/$defs/p"}, more)
    assert accepts({**PERSON, "additionalProperties": True}, more)
    assert accepts({"allOf": [PERSON, {"type": "object", "properties": {"x": {}}}]}, more)
    assert accepts({"$defs": {"p": PERSON}, "$ref": "#/$defs/p", "properties": {"x": {}}}, more)


def test_an_incomplete_structure_has_the_finish_reason_length(loaded: llmctl.LoadedModel) -> None:
    done = answer(loaded, tokens=5, json_schema=PERSON)
    assert done.finish_reason == "length"
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(done.text)


def test_greedy_structured_text_is_the_same_twice(loaded: llmctl.LoadedModel) -> None:
    greedy = with_generation(loaded, {"temperature": 0}, structure={"json_schema": PERSON})
    first, second = (llmctl.generate(greedy, "x", max_new_tokens=60).token_ids for _ in range(2))
    assert first == second


def test_strings_have_no_control_tokens_or_control_characters(loaded: llmctl.LoadedModel) -> None:
    schema = {"type": "string", "minLength": 20, "maxLength": 40}
    for seed in range(4):
        done = answer(loaded, seed=seed, json_schema=schema)
        assert not set(done.token_ids) & set(loaded.tokenizer.all_special_ids) - set(loaded.eos_token_ids)
        if done.finish_reason == "stop":
            assert not re.search(r"[\x00-\x1f]|\\u", done.text)


def test_a_listed_name_cannot_be_written_with_escapes() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert not accepts(schema, '{"\\u0061": "x"}')
    assert accepts(schema, '{"b": "x"}')


def test_dates_exist_in_the_calendar() -> None:
    dates = {"2024-02-29": True, "2023-02-29": False, "1900-02-29": False, "2000-02-29": True, "0000-01-01": False}
    dates |= {"2023-12-31": True, "2023-04-31": False}
    for text, is_day in dates.items():
        assert accepts({"type": "string", "format": "date"}, f'"{text}"') is is_day, text
        assert accepts({"type": "string", "format": "date-time"}, f'"{text}T10:00:00Z"') is is_day, text
    assert not accepts({"type": "string", "format": "date-time"}, '"2023-01-01T10:00:60Z"')


def test_usual_white_space_is_allowed_and_never_endless() -> None:
    for text in ('{"name":"a","age":1}', '{"name": "a", "age": 1}', '{\n  "name": "a",\n  "age": 1\n}'):
        assert accepts(PERSON, text)
    assert not accepts(PERSON, '{"name":  "a", "age": 1}')
    assert not accepts(PERSON, '{\n\n"name": "a", "age": 1}')


def accepts(schema: Any, text: str) -> bool:
    """Return whether a schema accepts a text, byte by byte."""
    from llguidance import LLMatcher, LLTokenizer

    structure = make_structure(StructureSection(json_schema=schema))
    assert structure is not None
    bytes_only = LLTokenizer("byte")
    matcher = LLMatcher(bytes_only, structure.grammar, log_level=0)
    ids = bytes_only.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


# -- the processor


def request_for(loaded: llmctl.LoadedModel, **structure: Any) -> Any:
    return make_request(with_generation(loaded, {}, structure=structure), Prompt((5, 6, 7)))


def test_embedding_rows_beyond_the_tokenizer_are_never_chosen(loaded: llmctl.LoadedModel) -> None:
    import torch

    request = request_for(loaded, regex="[a-z]+")
    for size in (len(loaded.tokenizer) + 100, len(loaded.tokenizer) - 20):
        [processor] = processors(request, loaded.tokenizer)
        scores = processor(torch.tensor([[5, 6, 7]]), torch.zeros(1, size))
        assert scores.shape == (1, size)
        assert scores[0, len(loaded.tokenizer) :].isneginf().all()
        assert scores[0].isfinite().any()


def test_only_end_tokens_are_allowed_when_the_structure_is_complete(loaded: llmctl.LoadedModel) -> None:
    import torch

    more = with_generation(loaded, {}, structure={"regex": "no"})
    request = make_request(more, Prompt((5, 6, 7)))
    request = type(request)(**{**vars(request), "arguments": {**request.arguments, "eos_token_id": [0, 2]}})
    [processor] = processors(request, loaded.tokenizer)
    size = len(loaded.tokenizer)
    no = loaded.tokenizer("no", add_special_tokens=False)["input_ids"]
    before = processor(torch.tensor([[5, 6, 7]]), torch.zeros(1, size))
    after = processor(torch.tensor([[5, 6, 7, *no]]), torch.zeros(1, size))
    assert not before[0, [0, 2]].isfinite().any()
    assert after[0].isfinite().nonzero().flatten().tolist() == [0, 2]


def test_the_processor_follows_rejected_tokens(loaded: llmctl.LoadedModel) -> None:
    import torch

    def ids(text: str) -> "torch.Tensor":
        return torch.tensor([[5, 6, 7, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]])

    request = request_for(loaded, choices=["abc", "axy"])
    [processor] = processors(request, loaded.tokenizer)
    flat = torch.zeros(1, len(loaded.tokenizer))
    first = processor(ids("a"), flat)
    processor(ids("abc"), flat)
    assert torch.equal(processor(ids("a"), flat), first)
    assert torch.equal(processor(ids("ax"), flat), fresh(request, loaded)(ids("ax"), flat))


def fresh(request: Any, loaded: llmctl.LoadedModel) -> StructureProcessor:
    [processor] = processors(request, loaded.tokenizer)
    assert isinstance(processor, StructureProcessor)
    return processor


def test_the_structure_takes_precedence_if_no_allowed_token_is_left(loaded: llmctl.LoadedModel) -> None:
    import torch

    scores = torch.full((1, len(loaded.tokenizer)), -float("inf"))
    scores[0, 0] = 1.0  # another processor forces the end
    left = fresh(request_for(loaded, regex="a"), loaded)(torch.tensor([[5, 6, 7]]), scores)
    assert [loaded.tokenizer.decode([i]) for i in left[0].isfinite().nonzero().flatten().tolist()] == ["a"]


@pytest.mark.parametrize("faster", [{"generation": {"prompt_lookup_num_tokens": 4}}, {"draft": True}])
def test_proposed_and_rejected_tokens_change_no_structured_text(faster: dict[str, Any], tiny_models: Tiny) -> None:
    generation = {"max_new_tokens": 60, **faster.get("generation", {})}
    more = {"draft": {"id": str(tiny_models("mistral"))}} if "draft" in faster else {}
    structure = {"json_schema": {"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 5, "maxItems": 6}}
    base: dict[str, Any] = {"load": {"dtype": "float32"}, "structure": structure}
    quick = llmctl.load(tiny_models("llama"), generation=generation, **base, **more)
    plain = llmctl.load(tiny_models("llama"), generation={"max_new_tokens": 60}, **base)
    done = llmctl.generate(quick, "one two one two")
    assert done.finish_reason == "stop"
    assert done.text == llmctl.generate(plain, "one two one two").text


# -- tokenizers of every kind


def llama_like() -> Any:
    """Return SentencePiece's BPE as tokenizers has it: spaces as ▁, bytes as <0x0A>, the first space stripped."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["yes no maybe, it is a question of time"] * 3, trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def unigram_like() -> Any:
    """Return SentencePiece's Unigram with the Metaspace decoder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(["yes no maybe, it is a question of time"] * 3, trainer)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def tiktoken_like() -> Any:
    """Return byte-level BPE split by tiktoken's pattern, with special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+|."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["</s>", "<|eot_id|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["yes no maybe, it is a question of time"] * 3, trainer)
    return tokenizer


@pytest.mark.parametrize("make", [llama_like, unigram_like, tiktoken_like])
def test_every_kind_of_tokenizer_generates_exactly_the_text(make: Callable[[], Any]) -> None:
    import random

    from transformers import PreTrainedTokenizerFast

    from llmctl.generation.structured.constraint import Follower, _vocabulary, exact_decoder

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="</s>")
    choices = [" yes , it is", "no"] if make is unigram_like else [" yes , it is", "no", "é\n你"]
    structure = make_structure(StructureSection(choices=choices))
    assert structure is not None
    texts = set()
    for seed in range(20):
        chance, ids = random.Random(seed), list[int]()
        matcher, follower, whole = _vocabulary(tokenizer).matcher(structure), Follower(structure, tokenizer), False
        while not whole:
            ids.append(chance.choice([n for n, allowed in enumerate(matcher.compute_logit_bias()) if allowed]))
            assert matcher.consume_token(ids[-1])
            whole = follower.is_complete_after(ids[-1])
        assert not set(ids) & set(tokenizer.all_special_ids)
        texts.add(exact_decoder(tokenizer)(ids))
    assert texts == set(choices)


def test_an_unsupported_tokenizer_is_an_error(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy()
    data = json.loads((folder / "tokenizer.json").read_text())
    data["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    loaded = llmctl.load(folder, structure={"regex": "a"})
    with pytest.raises(llmctl.ModelError, match="structured output cannot read this model's tokenizer"):
        llmctl.generate(loaded, "x")


# -- text to the byte


def test_the_text_keeps_spaces_that_decode_would_drop() -> None:
    from transformers import PreTrainedTokenizerFast

    from llmctl.generation.answer import Answer
    from llmctl.generation.prompt import Prompt
    from llmctl.generation.request import Request

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=llama_like(), eos_token="</s>")
    structure = make_structure(StructureSection(choices=[" yes"]))
    arguments = {"eos_token_id": [tokenizer.eos_token_id]}
    answer = Answer(tokenizer, Request(Prompt((1,)), arguments, 0, 9, (), structure=structure))
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("▁", "y", "e", "s")]
    text = text_of([*(piece for token in ids for piece in answer.take(token)), *answer.finish()])
    assert answer.finish_reason == "stop"
    assert text == answer.completion().text == " yes"
    assert tokenizer.decode(ids) == "yes"


# -- refused structures


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "strin"}, "#/type: it must be a type or a list of types"),
        ({"type": "string", "maxLenght": 3}, "#/maxLenght: unknown keyword; did you mean maxLength?"),
        ({"properties": {"a": {"not": {}}}}, "#/properties/a/not: it cannot be enforced"),
        ({"items": [{}]}, "#/items: it must be one schema; a list of schemas is called prefixItems"),
        ({"$ref": "https://example.com/x"}, "other schemas are not fetched"),
        ({"$ref": "#/$defs/none"}, "#/$defs/none: the target does not exist"),
        ({"$ref": "#"}, "#/$ref: it refers to itself"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "it refers to itself without"),
        ({"type": "string", "format": "password"}, "#/format: password cannot be enforced; supported: date-time"),
        ({"type": "string", "pattern": "^(?=a)b"}, "#/pattern: look-around cannot be enforced"),
        ({"type": "string", "pattern": "a{2"}, "#/pattern: "),
        ({"type": "object", "minProperties": 2}, "#/minProperties: at most one more than"),
        ({"x-guidance": {"lenient": True}}, "#/x-guidance: it cannot be enforced"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "#/oneOf: a value could match two of"),
        ({"type": "array", "items": {"type": "integer", "minimum": 5, "maximum": 3}, "minItems": 1}, "#/items: Unsat"),
        ({"enum": []}, "#/enum: it must be a list"),
        ({"type": []}, "#/type: it must be"),
        ({"maximum": float("inf")}, "this is not JSON"),
        ({"default": {1, 2}}, "this is not JSON"),
        ('{"type": ', "line 1, column 10: not JSON"),
        ("no-such.json", "no-such.json: No such file"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_enforced_is_refused_with_keyword_and_place(schema: Any, says: str) -> None:
    assert says in refusal(schema)


def test_annotations_and_keywords_without_effect_are_allowed() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/s", "title": "t",
        "description": "d", "default": 1, "examples": [1], "deprecated": True, "x-order": 3, "uniqueItems": False,
        "$defs": {"unused": {"not": {}}}, "type": "integer",
    }  # fmt: skip
    assert make_structure(StructureSection(json_schema=schema)) is not None


def test_a_schema_nested_too_deep_or_too_large_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    assert "nested more than 64 deep" in refusal(deep)
    assert "the limit is" in refusal({"enum": ["x" * 600_000, "y" * 600_000]})


def test_a_structure_that_takes_too_long_is_refused(
    loaded: llmctl.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmctl.generation.structured import constraint as constrain

    monkeypatch.setattr(constrain, "SECONDS", 1)
    schema = {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer", "multipleOf": 99_991 + i} for i in range(300)},
    }
    with pytest.raises(UserError, match="takes more than 1 seconds"):
        answer(loaded, json_schema=schema)


def test_a_grammar_is_refused_with_its_line(loaded: llmctl.LoadedModel) -> None:
    for grammar, says in (
        ('start: a\na: "x" foo', 'line 2, column 4: unknown name: "foo"'),
        ('start: <nosuch> "x"', "unknown special token"),
        ('start: %json {"type": "string", "maxLenght": 3}', "did you mean maxLength"),
        ("start: a\na: b\nb: a", "no text has this form"),
        ('{"grammars": [{"json_schema": {"x-guidance": {"lenient": true}}}]}\n', "a grammar must be Lark"),
        ('start: %json {"maximum": 1e999}', "this is not JSON"),
        ("start: a\na[temperature=0.5]: /x+/", "a rule's temperature"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            answer(loaded, grammar=grammar)


def test_conflicting_settings_are_refused_before_loading() -> None:
    for key, value in (("num_beams", 2), ("stop_strings", ["x"]), ("no_repeat_ngram_size", 3)):
        config = Config.model_validate({"structure": {"regex": "a"}, "generation": {key: value}})
        with pytest.raises(UserError, match=f"generation.{key} cannot be combined with a structure"):
            check_structure(config)


# -- Python objects


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=8)
    friend: "Pet | None" = None


class Even(BaseModel):
    number: int = Field(ge=1, le=1)

    @field_validator("number")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it is odd")
        return value


def test_a_pydantic_model_gives_an_instance(loaded: llmctl.LoadedModel) -> None:
    greedy = with_generation(loaded, {"temperature": 0})
    pet = llmctl.generate_object(greedy, "x", Pet, max_new_tokens=200)
    assert isinstance(pet, Pet)
    assert llmctl.generate_object(loaded, "x", Literal["a", "b"]) in ("a", "b")  # type: ignore[arg-type]


def test_an_object_that_was_cut_off_is_an_error_with_the_text(loaded: llmctl.LoadedModel) -> None:
    with pytest.raises(UserError, match="cut off after 3 tokens") as error:
        llmctl.generate_object(loaded, "x", Pet, max_new_tokens=3)
    assert error.value.details["text"].startswith("{")


def test_validators_of_the_type_are_applied(loaded: llmctl.LoadedModel) -> None:
    with pytest.raises(UserError, match=r"number does not pass the type's validation: .*it is odd"):
        llmctl.generate_object(loaded, "x", Even)


def test_a_type_that_cannot_be_enforced_is_an_error_with_the_keyword(loaded: llmctl.LoadedModel) -> None:
    class Tags(BaseModel):
        tags: set[str]

    with pytest.raises(UserError, match="#/properties/tags/uniqueItems"):
        llmctl.generate_object(loaded, "x", Tags)


# -- the configuration


def test_one_structure_at_a_time_and_the_later_layer_wins(tmp_path: Path) -> None:
    from llmctl.config.layers import Entry, read_settings

    file = tmp_path / "c.yaml"
    (tmp_path / "s.json").write_text("{}")
    file.write_text("structure:\n  json_schema: s.json\n")
    settings = read_settings(config=file, environ={}, folder=tmp_path)
    assert settings.config.structure.json_schema == str(tmp_path / "s.json")
    flags = {"structure.choices": Entry("a, b", "--choices")}
    settings = read_settings(config=file, flags=flags, environ={}, folder=tmp_path)
    assert settings.config.structure == StructureSection(choices=["a", "b"])
    flags["structure.regex"] = Entry("x", "--regex")
    with pytest.raises(ConfigError, match="--regex: only one of regex, choices can be set"):
        read_settings(flags=flags, environ={}, folder=tmp_path)


def test_a_configuration_file_can_contain_the_schema_or_the_grammar(tmp_path: Path) -> None:
    from llmctl.config.layers import read_settings

    file = tmp_path / "c.yaml"
    file.write_text("structure:\n  grammar: |\n    start: x\n    x: /a/\n")
    assert read_settings(config=file, environ={}, folder=tmp_path).config.structure.grammar == "start: x\nx: /a/\n"
    file.write_text("structure:\n  json_schema: {type: integer}\n")
    assert read_settings(config=file, environ={}, folder=tmp_path).config.structure.json_schema == {"type": "integer"}
    file.write_text("structure:\n  choices: [yes, no]\n")
    assert read_settings(config=file, environ={}, folder=tmp_path).config.structure.choices == ["yes", "no"]
    file.write_text("structure:\n  choices: [true, 010]\n")
    assert read_settings(config=file, environ={}, folder=tmp_path).config.structure.choices == ["true", "010"]


def test_a_number_too_large_for_a_float_does_not_become_infinity() -> None:
    with pytest.raises(ValueError, match="larger than"):
        parse_json('{"a": 1e999}')
    assert parse_json('{"a": 1e9}') == {"a": 1e9}
