"""Calls in a model's text: found in every family's way of writing, whole or in pieces; the rest stays text."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import ChatSection
from llmctl.generation.tools import Arguments, Call, CallSplitter, Piece, Said, ToolFormat, tool_format, whole
from llmctl.model.tokenizer import load_tokenizer
from support.tiny import write_tokenizer

TEMPLATES = Path(__file__).parents[2] / "support" / "templates"
TOOLS: dict[str, Any] = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "stop": {},
}
Read = tuple[str, list[tuple[str, Any]]]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ToolFormat]:
    found = {}
    for file in TEMPLATES.glob("*.jinja"):
        folder = tmp_path_factory.mktemp(file.stem)
        write_tokenizer(folder, template=file.read_text())
        found[file.stem] = tool_format(load_tokenizer(folder, {}, source="acme/tiny"), ChatSection())
    return found


def split(splitter: CallSplitter, text: str, size: int) -> list[Piece]:
    pieces = [piece for at in range(0, len(text), size) for piece in splitter.add(text[at : at + size])]
    return pieces + splitter.finish()


def read(form: ToolFormat, text: str, **how: Any) -> Read:
    """The text and the calls: the same however the text arrives."""
    found = []
    for size in (1, 2, 7, len(text) or 1):
        said, calls = whole(split(CallSplitter(form, TOOLS, **how), text, size))
        found.append((said, [(call.name, json.loads(call.arguments)) for call in calls]))
    assert all(one == found[0] for one in found)
    return found[0]


PARIS = ("get_weather", {"city": "Paris", "days": 2})
STOP: tuple[str, Any] = ("stop", {})


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (
            "qwen",
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>\n'
            '<tool_call>{"arguments": {}, "name": "stop"}</tool_call>',
        ),
        (
            "llama",
            '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}; '
            '{"name": "stop", "parameters": {}}',
        ),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}, "id": "abcdefghi"}, '
            '{"name": "stop", "arguments": {}}]',
        ),
        ("mistral_inline", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}[TOOL_CALLS]stop[ARGS]{}'),
        ("mistral_inline", '[TOOL_CALLS]get_weather{"city": "Paris", "days": 2}[TOOL_CALLS]stop{}'),
        (
            "phi",
            '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}, '
            '{"name": "stop", "arguments": {}}]<|/tool_call|>',
        ),
        (
            "gemma",
            '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|><|tool_call>call:stop{}<tool_call|>',
        ),
        (
            "qwen_coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n"
            "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=stop>\n</function>\n</tool_call>",
        ),
        (
            "glm",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call><tool_call>stop\n</tool_call>",
        ),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Paris", "days": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>stop\n'
            "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        ("lfm", '<|tool_call_start|>[get_weather(city="Paris", days=2), stop()]<|tool_call_end|>'),
    ],
)
def test_two_calls_are_read_in_every_familys_way(family: str, text: str, forms: dict[str, ToolFormat]) -> None:
    assert read(forms[family], text) == ("", [PARIS, STOP])


def test_text_before_and_after_calls_is_content(forms: dict[str, ToolFormat]) -> None:
    call = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    assert read(forms["qwen"], f"One moment. \n\n{call}\n") == ("One moment.", [STOP])
    assert read(forms["qwen"], f"a {call} b {call}") == ("a b", [STOP, STOP])


@pytest.mark.parametrize(
    "text",
    [
        "just text, <tool and no call",
        "a <tool_call>{bad}</tool_call> b",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "stop", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "stop", "arguments": {}',
        '<tool_call>{"name": "get_weather", "arguments": {"days": 1e999}}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"days": NaN}}</tool_call>',
        "<tool_call>" + "[" * 3000 + "</tool_call>",
        "<tool_call>",
        "  spaces stay  ",
    ],
)
def test_what_is_no_call_stays_text(text: str, forms: dict[str, ToolFormat]) -> None:
    assert read(forms["qwen"], text) == (text, [])


@pytest.mark.parametrize("text", ['{"a": 1}', "{ braces }", "[1, 2]", '{"name": "unknown", "parameters": {}}', "{"])
def test_json_that_is_no_call_stays_text_where_calls_are_not_marked(text: str, forms: dict[str, ToolFormat]) -> None:
    assert read(forms["llama"], text) == (text, [])


def test_pythonic_calls_are_never_run(forms: dict[str, ToolFormat], tmp_path: Path) -> None:
    file = tmp_path / "made"
    text = f"<|tool_call_start|>[stop(x=open('{file}', 'w'))]<|tool_call_end|>"
    assert read(forms["lfm"], text) == (text, [])
    assert not file.exists()


def test_a_call_may_hold_the_text_that_closes_calls(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>{"name": "stop", "arguments": {"x": "a</tool_call>b"}}</tool_call>'
    assert read(forms["qwen"], text) == ("", [("stop", {"x": "a</tool_call>b"})])


def test_text_values_keep_what_looks_like_a_number(forms: dict[str, ToolFormat]) -> None:
    text = "<tool_call><function=get_weather><parameter=city>\n75001\n</parameter></function></tool_call>"
    assert read(forms["qwen_coder"], text) == ("", [("get_weather", {"city": "75001"})])


def test_half_a_character_in_arguments_can_still_be_sent(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>{"name": "stop", "arguments": {"x": "\\ud800"}}</tool_call>'
    _, [call] = whole(split(CallSplitter(forms["qwen"], TOOLS), text, 5))
    assert json.loads(call.arguments.encode()) == {"x": "\ud800"}


def test_pieces_come_in_openais_order_with_ids_of_their_own(forms: dict[str, ToolFormat]) -> None:
    call = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    pieces = split(CallSplitter(forms["qwen"], TOOLS), f"x{call}{call}", 4)
    assert [type(piece) for piece in pieces] == [Said, Call, Arguments, Call, Arguments]
    calls = [piece for piece in pieces if isinstance(piece, Call)]
    assert [call.index for call in calls] == [0, 1]
    assert calls[0].id != calls[1].id
    assert all(call.id.startswith("call_") and len(call.id) == 29 for call in calls)


def test_no_more_calls_than_are_allowed(forms: dict[str, ToolFormat]) -> None:
    call = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    assert read(forms["qwen"], call * 3, most=1) == ("", [STOP])


# -- held to their form


def test_arguments_arrive_in_pieces_where_calls_are_held_to_their_form(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "a}\\"b", "days": 2}}\n</tool_call>'
    pieces = split(CallSplitter(forms["qwen"], TOOLS, calls_only=True, exact=True), text, 3)
    assert isinstance(pieces[0], Call)
    assert len(pieces) > 5, "long before the call was whole"
    assert whole(pieces)[1][0].arguments == '{"city": "a}\\"b", "days": 2}'


@pytest.mark.parametrize("family", ["qwen", "mistral", "mistral_inline", "phi", "gemma", "deepseek", "lfm", "glm"])
def test_what_a_template_writes_is_followed_to_the_letter(family: str, forms: dict[str, ToolFormat]) -> None:
    form = forms[family]
    arguments = json.dumps({"city": "Paris", "days": 2})
    text = f"{form.begin}get_weather{form.middle}{arguments}{form.between}stop{form.middle}{{}}{form.end}"
    assert read(form, text, calls_only=True, exact=True) == ("", [PARIS, STOP])
    assert read(form, f"Well: {text} so.", exact=True) == ("Well: so.", [PARIS, STOP])
    assert read(form, text) == ("", [PARIS, STOP]), "and read leniently it is the same"


def test_a_cut_answer_has_the_arguments_so_far(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par'
    said, [call] = whole(split(CallSplitter(forms["qwen"], TOOLS, calls_only=True, exact=True), text, 4))
    assert (said, call.arguments) == ("", '{"city": "Par')
