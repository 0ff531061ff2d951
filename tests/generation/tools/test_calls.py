"""Parsing of tool calls in every family's format, whole or in pieces; everything else stays text."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import ChatSection
from llmctl.generation.pieces import ArgumentsDelta, CallStart, Piece, TextDelta, assemble
from llmctl.generation.tools import CallSplitter, ToolFormat, tool_format
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
    formats = {}
    for file in TEMPLATES.glob("*.jinja"):
        folder = tmp_path_factory.mktemp(file.stem)
        write_tokenizer(folder, template=file.read_text())
        formats[file.stem] = tool_format(load_tokenizer(folder, {}, source="acme/tiny"), ChatSection())
    return formats


def split(splitter: CallSplitter, text: str, size: int) -> list[Piece]:
    pieces = [piece for at in range(0, len(text), size) for piece in splitter.add(text[at : at + size])]
    return pieces + splitter.finish()


def read(form: ToolFormat, text: str, **options: Any) -> Read:
    """Return the text and the calls, after a check that the size of pieces does not matter."""
    results = []
    for size in (1, 2, 7, len(text) or 1):
        answer = assemble(split(CallSplitter(form, TOOLS, **options), text, size))
        results.append((answer.text, [(call.name, json.loads(call.arguments)) for call in answer.calls]))
    assert all(result == results[0] for result in results)
    return results[0]


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
def test_two_calls_are_parsed_in_every_familys_format(family: str, text: str, forms: dict[str, ToolFormat]) -> None:
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
def test_text_that_is_not_a_call_stays_text(text: str, forms: dict[str, ToolFormat]) -> None:
    assert read(forms["qwen"], text) == (text, [])


@pytest.mark.parametrize("text", ['{"a": 1}', "{ braces }", "[1, 2]", '{"name": "unknown", "parameters": {}}', "{"])
def test_without_markers_json_that_is_not_a_call_stays_text(text: str, forms: dict[str, ToolFormat]) -> None:
    assert read(forms["llama"], text) == (text, [])


def test_pythonic_calls_are_never_executed(forms: dict[str, ToolFormat], tmp_path: Path) -> None:
    file = tmp_path / "made"
    text = f"<|tool_call_start|>[stop(x=open('{file}', 'w'))]<|tool_call_end|>"
    assert read(forms["lfm"], text) == (text, [])
    assert not file.exists()


def test_an_argument_may_contain_the_closing_marker(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>{"name": "stop", "arguments": {"x": "a</tool_call>b"}}</tool_call>'
    assert read(forms["qwen"], text) == ("", [("stop", {"x": "a</tool_call>b"})])


def test_a_string_argument_that_looks_like_a_number_stays_a_string(forms: dict[str, ToolFormat]) -> None:
    text = "<tool_call><function=get_weather><parameter=city>\n75001\n</parameter></function></tool_call>"
    assert read(forms["qwen_coder"], text) == ("", [("get_weather", {"city": "75001"})])


def test_a_lone_surrogate_in_arguments_can_be_encoded(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>{"name": "stop", "arguments": {"x": "\\ud800"}}</tool_call>'
    [call] = assemble(split(CallSplitter(forms["qwen"], TOOLS), text, 5)).calls
    assert json.loads(call.arguments.encode()) == {"x": "\ud800"}


def test_pieces_come_in_openais_order_with_unique_ids(forms: dict[str, ToolFormat]) -> None:
    call = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    pieces = split(CallSplitter(forms["qwen"], TOOLS), f"x{call}{call}", 4)
    assert [type(piece) for piece in pieces] == [TextDelta, CallStart, ArgumentsDelta, CallStart, ArgumentsDelta]
    calls = [piece for piece in pieces if isinstance(piece, CallStart)]
    assert [call.index for call in calls] == [0, 1]
    assert calls[0].id != calls[1].id
    assert all(call.id.startswith("call_") and len(call.id) == 29 for call in calls)


def test_calls_beyond_the_maximum_are_dropped(forms: dict[str, ToolFormat]) -> None:
    call = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    assert read(forms["qwen"], call * 3, max_calls=1) == ("", [STOP])


# -- constrained calls


def test_arguments_of_constrained_calls_arrive_in_pieces(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "a}\\"b", "days": 2}}\n</tool_call>'
    pieces = split(CallSplitter(forms["qwen"], TOOLS, calls_only=True, exact=True), text, 3)
    assert isinstance(pieces[0], CallStart)
    assert len(pieces) > 5, "the arguments arrive before the call is complete"
    assert assemble(pieces).calls[0].arguments == '{"city": "a}\\"b", "days": 2}'


@pytest.mark.parametrize("family", ["qwen", "mistral", "mistral_inline", "phi", "gemma", "deepseek", "lfm", "glm"])
def test_the_exact_format_of_a_template_is_followed(family: str, forms: dict[str, ToolFormat]) -> None:
    form = forms[family]
    first, second = (form.syntax.write(arguments) for arguments in ({"city": "Paris", "days": 2}, {}))
    text = f"{form.begin}get_weather{form.middle}{first}{form.between}stop{form.middle}{second}{form.end}"
    assert read(form, text, calls_only=True, exact=True) == ("", [PARIS, STOP])
    assert read(form, f"Well: {text} so.", exact=True) == ("Well: so.", [PARIS, STOP])
    assert read(form, text) == ("", [PARIS, STOP]), "lenient parsing gives the same"


def test_a_cut_answer_has_the_arguments_so_far(forms: dict[str, ToolFormat]) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par'
    answer = assemble(split(CallSplitter(forms["qwen"], TOOLS, calls_only=True, exact=True), text, 4))
    assert (answer.text, answer.calls[0].arguments) == ("", '{"city": "Par')
