"""Properties that hold for every family's format, whatever a model writes, with random texts made of its own marks."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llmctl.generation.pieces import assemble
from llmctl.generation.tools import CallSplitter, ToolFormat, calls
from llmctl.generation.tools.families import FAMILIES
from llmctl.generation.tools.messages import calls_text

TOOLS: dict[str, Any] = {
    "f": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "number": {"type": "number"},
            "flag": {"type": "boolean"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "list": {"type": "array", "items": {"type": "string"}},
            "object": {"$ref": "#/$defs/node"},
            "from": {"enum": [1, "one", None, True]},
            "a key-with.more": {"type": "integer"},
        },
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "node": {"$ref": "#/$defs/node"},
                    "item": {"type": "number"},
                },
            }
        },
    },
    "ff": {},
}
# Formats whose calls are messages of their own are read by `channels`.
FORMS = {
    f"{number} {form.name}": form
    for number, (_, form) in enumerate(FAMILIES)
    if form.name != "harmony" and form.begin and form.name != "muse"
}
Read = tuple[str, list[tuple[str, str]]]


def read(form: ToolFormat, text: str, cuts: Sequence[int] = (), **options: Any) -> Read:
    """Return the text and the calls of an answer that arrives in pieces."""
    splitter = CallSplitter(form, TOOLS, **options)
    pieces = [
        piece
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
        for piece in splitter.add(text[start:end])
    ]
    answer = assemble([*pieces, *splitter.finish()])
    return answer.text, [(call.name, call.arguments) for call in answer.calls]


def written(form: ToolFormat, *arguments: Any, name: str = "f") -> str:
    """Return calls as a model of the family writes them."""
    return calls_text([{"function": {"name": name, "arguments": json.dumps(one)}} for one in arguments], form)


def strings(rng: random.Random, form: ToolFormat | None = None) -> str:
    parts = [
        '"',
        "'",
        "\\",
        "\n",
        " ",
        "{",
        "}",
        "[",
        ")",
        ",",
        ":",
        "é",
        "😀",
        "a",
        "3",
        "<",
        ">",
        "\r\n",
        "\0",
        "```",
    ]
    if form is not None:
        parts += [mark for mark in form.marks if mark] * 2
    text = "".join(rng.choice(parts) for _ in range(rng.randrange(6)))
    return text if form is not None else text.lstrip("\n")  # see the test of white space


def values(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    node = {"text": strings(rng), "item": 1.5, **({"node": {"item": 2}} if depth else {})}
    everything = {
        "text": strings(rng),
        "number": rng.choice([0.5, -3, 1e300]),
        "flag": rng.choice([True, False]),
        "maybe": rng.choice([None, 7]),
        "list": [strings(rng) for _ in range(rng.randrange(3))],
        "object": node,
        "from": rng.choice([1, "one", None, True]),
        "a key-with.more": rng.randrange(10**20),
    }
    return {key: value for key, value in everything.items() if rng.random() < 0.5}


def fragments(rng: random.Random, form: ToolFormat) -> Iterator[str]:
    marks = [mark for mark in form.marks if mark]
    for _ in range(rng.randrange(1, 8)):
        mark = rng.choice(marks)
        yield rng.choice(
            [
                mark,
                mark[: rng.randrange(len(mark) + 1)],
                rng.choice(["f", "ff", "text", '{"name": "f", "arguments": {"text": "a"}}', '{"ff": {}}', "[", "\\"]),
                strings(rng),
                written(form, {"text": strings(rng, form)}),
                written(form, {}, name="ff")[: rng.randrange(60)],
            ]
        )


@pytest.mark.parametrize("name", FORMS)
def test_an_answer_is_read_the_same_in_any_pieces_and_no_text_is_lost(name: str, monkeypatch: Any) -> None:
    form, rng, taken = FORMS[name], random.Random(name), []

    def parse_calls(text: str, *arguments: Any, **options: Any) -> Any:
        parsed = parse(text, *arguments, **options)
        if parsed is not None and parsed[0]:
            taken.append(text[: parsed[1]])
        return parsed

    parse = calls.parse_calls
    monkeypatch.setattr(calls, "parse_calls", parse_calls)
    for _ in range(12):
        text = "".join(fragments(rng, form))
        taken.clear()
        whole = read(form, text)
        shown, given, inside = (re.sub(r"[\s;,]", "", one) for one in (whole[0], text, "".join(taken)))
        rest = iter(given)
        assert all(character in rest for character in shown), text  # in order
        assert len(shown) + len(inside) == len(given), text
        assert whole[1] or whole[0] == text
        cuts = sorted(rng.sample(range(len(text) + 1), min(len(text), 3)))
        assert read(form, text, cuts) == whole, text
        assert read(form, text, range(1, len(text))) == whole, text


@pytest.mark.parametrize("name", FORMS)
def test_arguments_are_read_as_they_were_written(name: str) -> None:
    form, rng = FORMS[name], random.Random(name)
    for _ in range(12):
        given = values(rng)
        text, [(_, arguments)] = read(form, written(form, given))
        assert (text, json.loads(arguments)) == ("", given)


@pytest.mark.parametrize("name", FORMS)
def test_a_call_that_is_cut_off_within_its_arguments_stays_text(name: str) -> None:
    form = FORMS[name]
    text = written(form, {"text": "a", "number": 5})
    for end in range(1, text.index("5") + 2):
        assert read(form, text[:end]) == (text[:end], [])


@pytest.mark.parametrize("name", FORMS)
def test_the_time_for_a_long_argument_is_proportional_to_its_length(name: str, monkeypatch: Any) -> None:
    form, work = FORMS[name], []

    def parse_calls(text: str, *arguments: Any, **options: Any) -> Any:
        work.append(len(text))
        return parse(text, *arguments, **options)

    parse = calls.parse_calls
    monkeypatch.setattr(calls, "parse_calls", parse_calls)
    text = written(form, {"text": 'x = "y" + {} # ' * 4000})
    _, [(_, arguments)] = read(form, text, range(4, len(text), 4))
    assert len(json.loads(arguments)["text"]) == 60_000
    assert sum(work) < 12 * len(text) + 500_000


@pytest.mark.parametrize("name", FORMS)
def test_hostile_repetitions_are_text(name: str) -> None:
    form = FORMS[name]
    call = f"{form.begin}f{form.middle}"
    parts = ["{", "[", "(", '"', "\\", "{}", form.begin, call, call + form.syntax.write({"text": "("})[:-1]]
    for part in parts:
        for before in ("", written(form, {"text": "z"}).partition("z")[0]):
            text = before + part * (3000 // len(part))
            assert read(form, text) == (text, [])


def test_the_last_newline_of_a_string_is_kept_and_the_newlines_around_it_are_not() -> None:
    forms = {form.name: form for _, form in FAMILIES}
    for value, expected in (("a\n", "a\\n"), ("\n a", "\\n a"), ("\na\n", "a")):
        text = f"<seed:tool_call>\n<function=f>\n<parameter=text>{value}</parameter>\n</function>\n</seed:tool_call>"
        assert read(forms["seed"], text) == ("", [("f", f'{{"text": "{expected}"}}')])
    text = "<tool_call>\n<function=f>\n<parameter=text>\n\na\n\n</parameter>\n</function>\n</tool_call>"
    assert read(forms["qwen-xml"], text) == ("", [("f", '{"text": "\\na\\n"}')])


def test_python_calls_may_have_keywords_as_names_and_strings_of_several_lines() -> None:
    [lfm] = {form for _, form in FAMILIES if form.name == "lfm"}
    text = (
        '<|tool_call_start|>[f(from=\'one\', text="a\nb", object={\'text\': """c"d"""}), ff(x=(1, 2), y=\'\\u00e9\')]'
    )
    expected = [
        ("f", '{"from": "one", "text": "a\\nb", "object": {"text": "c\\"d"}}'),
        ("ff", '{"x": [1, 2], "y": "é"}'),
    ]
    assert read(lfm, f"{text}<|tool_call_end|>") == ("", expected)
    for wrong in ("f(x=y)", "f(x=f())", "f(1)", "f(x=1 + 1)", "f(x=nan)", f"f(x={'[' * 100}{']' * 100})"):
        wrong = f"<|tool_call_start|>[{wrong}]<|tool_call_end|>"
        assert read(lfm, wrong) == (wrong, [])


def test_text_after_a_list_of_calls_does_not_undo_them() -> None:
    form = next(form for tokens, form in FAMILIES if tokens == ("[TOOL_CALLS]",))
    one = '[TOOL_CALLS][{"name": "ff", "arguments": {}}]'
    assert read(form, f"{one} [note] {{so}}") == ("[note] {so}", [("ff", "{}")])
    assert read(form, one + one) == ("", [("ff", "{}")] * 2)
