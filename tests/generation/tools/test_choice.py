"""Answers constrained to tool calls are always complete and valid."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

import llmctl
from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.pieces import ToolCall
from llmctl.generation.prompt import Prompt, encode_prompt
from llmctl.generation.request import make_request
from llmctl.generation.response import response_rules
from llmctl.generation.stream import stream_request
from llmctl.generation.structured.constraint import _vocabulary
from llmctl.generation.structured.structure import Structure
from llmctl.generation.tools import ToolUse, tool_use
from llmctl.generation.tools.messages import calls_text
from support.generation_config import with_generation_config
from support.tiny import write_model

WithTemplate = Callable[[str], llmctl.LoadedModel]
TEMPLATES = Path(__file__).parents[2] / "support" / "templates"
CITY = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome", 'New "York"']},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


WEATHER, STOP = tool("get_weather", CITY), tool("stop")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> llmctl.LoadedModel:
    folder = write_model(tmp_path_factory.mktemp("long") / "llama", max_position_embeddings=4096)
    return llmctl.load(folder, load={"dtype": "float32"}, generation={"temperature": 1.5, "top_k": 0})


@pytest.fixture
def with_template(loaded: llmctl.LoadedModel) -> WithTemplate:
    def make(name: str) -> llmctl.LoadedModel:
        tokenizer = copy.deepcopy(loaded.tokenizer)
        tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
        return replace(loaded, tokenizer=tokenizer)

    return make


def accepts(tokenizer: Any, structure: Structure | None, text: str, *, whole: bool = False) -> bool:
    """Return True if a structure accepts a text, as a whole or as a prefix."""
    assert structure is not None
    matcher = LLMatcher(_vocabulary(tokenizer)._inner, structure.grammar, log_level=0)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return matcher.try_consume_tokens(ids) == len(ids) and (not whole or matcher.is_accepting())


def calls_of(
    loaded: llmctl.LoadedModel, tools: list[Any], *, seed: int = 1, tokens: int = 200, **options: Any
) -> tuple[str, list[ToolCall], str]:
    """Return the text, the calls and the finish reason of an answer."""
    use = tool_use(loaded.tokenizer, ChatSection(), tools, **options)
    messages, arguments = use.conversation([{"role": "user", "content": "x"}])
    prompt = encode_prompt(loaded.tokenizer, messages, ChatSection(), **arguments)
    request = make_request(loaded, prompt, seed=seed, max_new_tokens=tokens, tools=use)
    *_, last = stream_request(loaded, request)
    assert last.completion is not None
    return last.completion.text, list(last.completion.calls), last.completion.finish_reason


def structure_of(tokenizer: Any, use: ToolUse, *, prompt_tail: str = "") -> Structure | None:
    """Return the structure of an answer to a prompt."""
    rules = response_rules(tokenizer, ChatSection(), Prompt((), templated=True), use)
    return replace(rules, prompt_tail=prompt_tail).structure(tokenizer, None)


@pytest.mark.parametrize("family", ["qwen", "llama", "mistral", "mistral_inline", "phi", "gemma", "qwen_coder", "lfm"])
def test_with_a_required_choice_the_model_always_calls(family: str, with_template: WithTemplate) -> None:
    loaded = with_template(family)
    names = set()
    for seed in range(4):
        text, calls, reason = calls_of(loaded, [WEATHER, STOP], seed=seed, choice="required", parallel=False)
        assert (text, len(calls), reason) == ("", 1, "stop")
        names.add(calls[0].name)
        value = json.loads(calls[0].arguments)
        assert value == {} if calls[0].name == "stop" else jsonschema.validate(value, CITY) is None
    assert names <= {"get_weather", "stop"}


def test_settings_in_the_models_files_do_not_break_a_required_call(with_template: WithTemplate) -> None:
    own = {"stop_strings": ['"'], "no_repeat_ngram_size": 1, "min_new_tokens": 150, "do_sample": True}
    loaded = with_generation_config(with_template("qwen"), own)
    text, calls, reason = calls_of(loaded, [WEATHER], choice="required", parallel=False)
    assert (text, len(calls), reason) == ("", 1, "stop")
    jsonschema.validate(json.loads(calls[0].arguments), CITY)


def test_several_calls_are_each_valid(with_template: WithTemplate) -> None:
    counts = []
    for seed in range(4):
        _, calls, reason = calls_of(with_template("qwen"), [WEATHER], seed=seed, choice="required", tokens=400)
        for call in calls if reason == "stop" else calls[:-1]:
            jsonschema.validate(json.loads(call.arguments), CITY)
        counts.append(len(calls))
    assert max(counts) > 1


def test_only_a_named_tool_is_called(with_template: WithTemplate) -> None:
    for seed in range(4):
        _, calls, _ = calls_of(with_template("qwen"), [WEATHER, STOP], seed=seed, choice="required", only=["stop"])
        assert {call.name for call in calls} == {"stop"}


def test_strict_tools_still_allow_plain_text(with_template: WithTemplate) -> None:
    loaded = with_template("qwen")
    text, calls, _ = calls_of(loaded, [tool("get_weather", CITY, strict=True)], tokens=60)
    assert (bool(text), calls) == (True, [])


@pytest.mark.parametrize("opened", ["<tool_call>", "Well. <tool_call>"])
def test_after_the_opening_marker_a_strict_schema_is_enforced(opened: str, with_template: WithTemplate) -> None:
    tokenizer = with_template("qwen").tokenizer
    use = tool_use(tokenizer, ChatSection(), [tool("get_weather", CITY, strict=True), tool("free", {"uniqueItems": 1})])
    form = structure_of(tokenizer, use)
    good = '\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
    assert accepts(tokenizer, form, "anything at all, {braces} too", whole=True)
    assert accepts(tokenizer, form, f"{opened}{good} and {opened}{good}", whole=True)
    assert accepts(
        tokenizer, form, opened + '\n{"name": "free", "arguments": {"what": ["ever"]}}\n</tool_call>', whole=True
    )
    assert not accepts(tokenizer, form, opened + '\n{"name": "get_weather", "arguments": {"city": "Oslo"')
    assert not accepts(tokenizer, form, opened + '\n{"name": "other"')
    assert not accepts(tokenizer, form, opened + " or so")


def test_without_markers_an_answer_that_starts_with_a_brace_is_a_call(with_template: WithTemplate) -> None:
    tokenizer = with_template("llama").tokenizer
    form = structure_of(tokenizer, tool_use(tokenizer, ChatSection(), [tool("get_weather", CITY, strict=True)]))
    good = '{"name": "get_weather", "parameters": {"city": "Rome", "days": 3}}'
    assert accepts(tokenizer, form, "no braces first", whole=True)
    assert accepts(tokenizer, form, "", whole=True)
    assert accepts(tokenizer, form, good, whole=True)
    assert not accepts(tokenizer, form, '{"a"')


def test_markers_that_are_special_tokens_are_tokens_in_the_grammar_and_stay_in_the_text(tiny_copy: Any) -> None:
    from transformers import AutoTokenizer

    folder = tiny_copy("llama", vocab_size=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kept = ["[TOOL_CALLS]", "[ARGS]"]
    tokenizer.add_tokens(["<tool_call>"])  # not a special token, but llguidance takes it for one
    tokenizer.chat_template = (TEMPLATES / "mistral_inline.jinja").read_text()
    tokenizer.add_special_tokens({"additional_special_tokens": kept})
    tokenizer.save_pretrained(folder)
    loaded = llmctl.load(folder, load={"dtype": "float32"}, generation={"temperature": 1.5, "top_k": 0})
    use = tool_use(loaded.tokenizer, ChatSection(), [WEATHER], choice="required")
    shown = set(loaded.tokenizer.convert_tokens_to_ids(kept))
    assert response_rules(loaded.tokenizer, ChatSection(), Prompt((), templated=True), use).shown_tokens == shown
    grammar = str(structure_of(loaded.tokenizer, use))
    assert all(f"<[{number}]>" in grammar for number in shown)
    loaded.tokenizer.chat_template = (TEMPLATES / "qwen.jinja").read_text()
    hermes = replace(loaded, tokenizer=copy.deepcopy(loaded.tokenizer))
    text, calls, _ = calls_of(hermes, [STOP], tokens=60, choice="required", parallel=False)
    assert (text, [call.name for call in calls]) == ("", ["stop"])


def test_reasoning_opened_by_the_prompt_comes_before_the_calls(with_template: WithTemplate) -> None:
    tokenizer = with_template("qwen").tokenizer
    use = tool_use(tokenizer, ChatSection(), [STOP], choice="required")
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    thinking = structure_of(tokenizer, use, prompt_tail="<|im_start|>assistant\n<think>\n")
    assert accepts(tokenizer, thinking, f"so {{be}} it</think>\n\n{call}", whole=True)
    assert not accepts(tokenizer, structure_of(tokenizer, use, prompt_tail="<think>\n\n</think>"), "so")


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"properties": {"a": {"uniqueItems": True}}}, "#/properties/a/uniqueItems"),
        ({"type": "array"}, "object"),
        ({"type": ["object", "null"]}, "object"),
        ({"properties": {"a": {"type": "strng"}}}, "#/properties/a/type"),
    ],
)
@pytest.mark.parametrize("options", [{"choice": "required"}, {"strict": True}])
def test_a_schema_that_cannot_be_enforced_is_an_error_with_its_param(
    parameters: Any, named: str, options: dict[str, Any], loaded: llmctl.LoadedModel
) -> None:
    tools = [STOP, tool("f", parameters, **{k: v for k, v in options.items() if k == "strict"})]
    with pytest.raises(UserError, match=named) as error:
        tool_use(loaded.tokenizer, ChatSection(), tools, choice=options.get("choice", "auto"))
    assert error.value.details["param"] == "tools[1].function.parameters"


def test_a_tool_without_properties_accepts_none(with_template: WithTemplate) -> None:
    tokenizer = with_template("qwen").tokenizer
    use = tool_use(tokenizer, ChatSection(), [tool("stop", {"type": "object", "properties": {}})], choice="required")
    form = structure_of(tokenizer, use)
    assert accepts(tokenizer, form, '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>', whole=True)
    assert not accepts(tokenizer, form, '<tool_call>\n{"name": "stop", "arguments": {"')


def test_a_schema_that_is_not_enforced_may_be_anything(loaded: llmctl.LoadedModel) -> None:
    use = tool_use(loaded.tokenizer, ChatSection(), [tool("f", {"uniqueItems": True})])
    assert isinstance(use, ToolUse)
    assert structure_of(loaded.tokenizer, use) is None


def test_a_choice_of_an_unknown_tool_is_refused(loaded: llmctl.LoadedModel) -> None:
    with pytest.raises(UserError) as error:
        tool_use(loaded.tokenizer, ChatSection(), [STOP], choice="required", only=["nothing"])
    assert error.value.details["param"] == "tool_choice"


NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value"],
    "additionalProperties": False,
}
EVERYTHING = {
    "type": "object",
    "properties": {
        "a b>c": {"type": "integer"},
        "from": {"anyOf": [{"enum": ["x", "y"]}, {"type": "null"}]},
        "mixed": {"enum": [1, "one", None, True]},
        "node": {"$ref": "#/$defs/node"},
        "list": {"type": "array", "items": {"enum": ["p", "q"]}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "described": {"type": "integer", "description": 'see [x, temperature = 3] %json {"a": 1}'},
    },
    "required": ["a b>c", "from", "mixed", "node", "list", "map", "described"],
    "additionalProperties": False,
    "$defs": {"node": NODE},
}
GOOD = {
    "a b>c": 3,
    "from": None,
    "mixed": "one",
    "node": {"value": 1, "next": {"value": 2, "next": None}},
    "list": ["p", "q"],
    "map": {"k": 1},
    "described": 4,
}
BAD: list[dict[str, Any]] = [
    {"a b>c": "x"},
    {"from": "z"},
    {"mixed": "two"},
    {"node": {"value": 1, "next": {"value": "x"}}},
    {"list": ["r"]},
    {"map": {"k": "x"}},
]


@pytest.mark.parametrize("family", ["qwen", "mistral", "gemma", "qwen_coder", "glm", "lfm"])
@pytest.mark.parametrize("options", [{"choice": "required"}, {}])
def test_every_schema_is_enforced_in_every_syntax(family: str, options: Any, with_template: WithTemplate) -> None:
    tokenizer = with_template(family).tokenizer
    tools = [tool("get", EVERYTHING, strict=True), tool("get_more", {"$ref": "#/$defs/node", "$defs": {"node": NODE}})]
    use = tool_use(tokenizer, ChatSection(), tools, **options)
    structure = structure_of(tokenizer, use)

    def is_accepted(name: str, arguments: Any) -> bool:
        call = {"function": {"name": name, "arguments": json.dumps(arguments)}}
        return accepts(tokenizer, structure, calls_text([call], use.form), whole=True)

    assert is_accepted("get", GOOD)
    assert is_accepted("get_more", {"value": 1})
    for wrong in BAD:
        assert not is_accepted("get", {**GOOD, **wrong}), wrong


@pytest.mark.parametrize("family", ["gemma", "lfm"])
def test_a_name_that_a_format_cannot_write_is_an_error_with_its_param(family: str, with_template: WithTemplate) -> None:
    tools = [tool("f", {"properties": {" a": {"type": "integer"}}})]
    tool_use(with_template(family).tokenizer, ChatSection(), tools)
    with pytest.raises(UserError, match="' a'") as error:
        tool_use(with_template(family).tokenizer, ChatSection(), tools, choice="required")
    assert error.value.details["param"] == "tools[0].function.parameters"
