"""Recognition of the tool-call format of a chat template.

The tokens of a template select a known family (`families`), and renderings of sample conversations decide the details.
Without a known family, the format is guessed from the renderings. If a template has no tool support, tools are
described in the system message, with the family's format or else with that of Hermes
(NousResearch/Hermes-Function-Calling).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.config import ChatSection
from llmctl.generation.control_tokens import added_tokens
from llmctl.generation.marks import ID
from llmctl.generation.prompt import template_source, template_text
from llmctl.generation.tools.arguments import JsonArguments, TaggedArguments
from llmctl.generation.tools.families import family_format
from llmctl.generation.tools.format import HERMES, Placement, ToolFormat, between_marks
from llmctl.machine.sandbox import FailedError, LimitExceededError, run_bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMES = ("probe_tool_one", "probe_tool_two")
_KEYS = ("probe_a", "probe_b")
_VALUES = ("probe value", "probe other")
_IDS = ("probe0001", "probe0002")
_USER, _TEXT, _REASONING = "probe question", "probe text", "probe reasoning"
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_MARKER = r"(?:<[^<>\s]{1,40}>|\[/?[A-Z_]{3,30}\])"  # <tool_call>, <|tool_call|>, [TOOL_CALLS]
_formats: "WeakKeyDictionary[Any, dict[str | None, ToolFormat]]" = WeakKeyDictionary()


def tool_format(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection) -> ToolFormat:
    """Return the tool-call format of the chat template in use. The result is cached per template.

    Raises:
        UserError: the template's file cannot be read.
    """
    template = template_text(chat)
    formats = _formats.setdefault(tokenizer, {})
    if template not in formats:
        rendered = _renderings(tokenizer, template)
        source = template_source(tokenizer, chat, with_tools=True)
        if template is None and not isinstance(tokenizer.chat_template, str | None):
            # of several templates, the one for tools is used with tools only
            is_calls = re.compile("(one|two)_")
            rendered = {n: text for n, text in rendered.items() if n.endswith("_tools") or not is_calls.match(n)}
        response = getattr(tokenizer, "response_template", None)
        formats[template] = _recognise(source, rendered, response, vocabulary=added_tokens(tokenizer).text)
    return formats[template]


def template_call(name: str, arguments: Any, id_: str) -> dict[str, Any]:
    """Return a tool call in the form that chat templates of transformers expect."""
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


# -- renderings


def _sample_tool() -> dict[str, Any]:
    parameter = {"type": "string", "description": "z"}
    return {
        "type": "function",
        "function": {
            "name": _NAMES[0],
            "description": "y",
            "parameters": {
                "type": "object",
                "properties": dict.fromkeys(_KEYS, parameter),
                "required": [],
                "additionalProperties": False,
            },
        },
    }


def _sample_conversations() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Return conversations and template arguments whose renderings show the format."""
    user, tool = {"role": "user", "content": _USER}, _sample_tool()
    tools = {"tools": [tool]}

    def turn(
        count: int, message: Mapping[str, Any], *, text: bool = False, ids: Sequence[str] = _IDS
    ) -> list[dict[str, Any]]:
        values: list[Any] = [dict.fromkeys(_KEYS, value) for value in _VALUES]
        for value in values:
            value[_KEYS[1]] += " more"
        arguments = [json.dumps(value) for value in values] if text else values
        calls = [template_call(_NAMES[n], arguments[n], ids[n]) for n in range(count)]
        return [user, {"role": "assistant", "content": "", **message, "tool_calls": calls}]

    samples: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "tools": ([user], {"add_generation_prompt": True, **tools}),
        "message": ([{"role": "system", "content": "w", "tools": json.dumps([tool])}, user], {}),
        "system": ([{"role": "system", "content": _TEXT}, user], {}),
        "plain": ([user, {"role": "assistant", "content": _TEXT}], {}),
        "long_id": (turn(1, {}, ids=["call_0123456789abcdef"]), {}),
        "long_id_tools": (turn(1, {}, ids=["call_0123456789abcdef"]), tools),
    }
    for name, text, message in (
        ("dict", False, {}),
        ("text", True, {}),
        ("dict_none", False, {"content": None}),
        ("text_none", True, {"content": None}),
    ):
        for count, number in ((1, "one"), (2, "two")):
            samples[f"{number}_{name}"] = (turn(count, message, text=text), {})
            samples[f"{number}_{name}_tools"] = (turn(count, message, text=text), tools)
        for key in _REASONING_KEYS:
            result = {"role": "tool", "content": "r", "tool_call_id": _IDS[0], "name": _NAMES[0]}
            thought = [*turn(1, {**message, key: _REASONING}, text=text), result]
            samples[f"{key}_{name}"] = (thought, {"add_generation_prompt": True, **tools})
    return samples


def _renderings(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> dict[str, str]:
    """Render the samples; those that the template refuses are left out. The template is untrusted: it has limits."""
    if template is None and not tokenizer.chat_template:
        return {}

    def render() -> dict[str, str]:
        rendered = {}
        for name, (messages, arguments) in _sample_conversations().items():
            try:
                rendered[name] = str(
                    tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)
                )
            except Exception:  # noqa: BLE001, S112 (a template may refuse anything, in any way)
                continue
        return rendered

    try:
        return dict(run_bounded(render))
    except (LimitExceededError, FailedError):
        return {}


# -- recognition


def _recognise(source: str, rendered: Mapping[str, str], response: Any, *, vocabulary: str) -> ToolFormat:
    """Return the format of a template.

    Args:
        source: Its source.
        rendered: Its renderings of the samples.
        response: The tokenizer's `response_template`, or None.
        vocabulary: The added tokens, which decide if a template that gets tools shows no calls.
    """
    family = family_format("\0".join([source, *rendered.values()]))
    if family is None and _placement(rendered) in ("argument", "message"):
        family = family_format(vocabulary)
    shown = next((name for name in _sample_turns() if _shows_call(rendered.get(f"one_{name}", ""))), None)
    placement = _placement(rendered)
    form = family or _from_response_template(response)
    if shown is not None:
        one, two = _turn_of(rendered[f"one_{shown}"]), _turn_of(rendered.get(f"two_{shown}", ""))
        plain = _turn_of(rendered.get("plain", ""))
        form = (_refined(form, one, two) if form else _guess(one, two, plain)) or form
    form = form or HERMES
    return replace(
        form,
        name="guess" if family is None and placement in ("argument", "message") and response is None else form.name,
        placement=placement,
        renders_calls=shown is not None,
        text_arguments=shown is not None and shown.startswith("text"),
        no_content=shown is not None and "none" in shown,
        short_ids=shown is not None
        and not shown.startswith("text")
        and not any(n.startswith("long_id") for n in rendered),
        reasoning_key=_reasoning_key(source, rendered, shown),
    )


def _sample_turns() -> list[str]:
    """Return the names of the samples with calls, in the order of preference."""
    return [f"{form}{tools}" for tools in ("", "_tools") for form in ("dict", "text", "dict_none", "text_none")]


def _placement(rendered: Mapping[str, str]) -> Placement:
    """Return the way in which the template gets tools."""
    if _NAMES[0] in rendered.get("tools", ""):
        return "argument"
    if _NAMES[0] in rendered.get("message", ""):
        return "message"
    return "system" if not rendered or _TEXT in rendered.get("system", "") else "user"


def _reasoning_key(source: str, rendered: Mapping[str, str], shown: str | None) -> str | None:
    """Return the key under which the template takes the reasoning of an earlier call.

    If no rendering shows it, for example because thinking is off by default, a key that only reasoning has is taken.
    """
    name = (shown or "dict").removesuffix("_tools")
    in_source = [_REASONING_KEYS[0]] if _REASONING_KEYS[0] in source else []
    keys = [key for key in _REASONING_KEYS if _REASONING in rendered.get(f"{key}_{name}", "")]
    return next(iter([*keys, *in_source]), None)


def _turn_of(text: str) -> str:
    """Return what follows the user's message in a rendering."""
    return text.rpartition(_USER)[2]


def _shows_call(text: str) -> bool:
    """Return True if a rendering has the sample call in a form that a model could write."""
    turn = _turn_of(text)
    if _NAMES[0] not in turn or not all(part in turn for part in (*_KEYS, _VALUES[0])):
        return False
    return f'{_KEYS[0]}\\"' not in turn and f"{{'{_KEYS[0]}'" not in turn and "{{" not in turn


def _object(number: int) -> re.Pattern[str]:
    value = _VALUES[number]
    return re.compile(rf'\{{\s*"{_KEYS[0]}":\s*"{value}",\s*"{_KEYS[1]}":\s*"{value} more"\s*\}}')


def _refined(form: ToolFormat, one: str, two: str) -> ToolFormat | None:
    """Return a family's format with the white space of renderings; None if they do not show the same parts.

    Args:
        one: An assistant's turn with one call, and what follows.
        two: The same with two calls.
    """
    if form.is_fixed:
        return form
    name_at = one.find(_NAMES[0])
    start = one.rfind(form.open, 0, name_at) if form.open else _begin_of_object(one, name_at)
    if start < 0:
        return None
    begin, after = one[start:name_at], one[name_at + len(_NAMES[0]) :]
    if isinstance(form.syntax, TaggedArguments):
        return _refined_tagged(form, begin, after, two)
    if not isinstance(form.syntax, JsonArguments):
        return form
    arguments = _object(0).search(after)
    if arguments is None:
        return None
    middle, rest = after[: arguments.start()], after[arguments.end() :]
    end, between = _end_of_calls(form, rest), _between(two)
    if end is None:
        return None
    parts = [_with_ids(part) for part in (begin, middle, end)]
    return replace(
        form,
        begin=parts[0],
        middle=parts[1],
        between=_with_ids(between) if between is not None and form.between is not None else None,
        end=parts[2],
    )


def _begin_of_object(text: str, name_at: int) -> int:
    """Return the position of the brace that opens the call with the name at `name_at`, or -1."""
    opened = re.search(r'\{\s*"(?:tool_)?name":\s*"$', text[:name_at])
    return opened.start() if opened else -1


def _end_of_calls(form: ToolFormat, rest: str) -> str | None:
    """Return what follows the last arguments, up to the closing marker; None if the marker is missing."""
    if form.close:
        at = rest.find(form.close)
        return None if at < 0 else rest[: at + len(form.close)]
    # without a closing marker only the brackets of JSON belong to the call
    brackets = re.match(rf'(?:,\s*"id":\s*"{_IDS[0]}")?[\s\]}}]*', rest)
    return brackets[0].rstrip() if brackets and form.is_json_object else ""


def _between(two: str) -> str | None:
    """Return the text between the first call's arguments and the second call's name."""
    first, position = _object(0).search(two), two.rfind(_NAMES[1])
    return two[first.end() : position] if first and position > first.end() else None


def _with_ids(text: str) -> str:
    """Replace the ids of the samples by what stands for any id."""
    return re.sub("|".join(_IDS), ID, text)


def _refined_tagged(form: ToolFormat, begin: str, after: str, two: str) -> ToolFormat | None:
    """Return a format with tagged arguments as in renderings; None if they do not show the same parts."""
    syntax = form.syntax
    assert isinstance(syntax, TaggedArguments)  # noqa: S101
    mark = syntax.key_open.strip()
    match = re.match(
        rf"(?P<middle>.*?){re.escape(mark)}{_KEYS[0]}(?P<key_close>.*?){_VALUES[0]}(?P<value_close>.*?){re.escape(mark)}"
        rf"{_KEYS[1]}(?P=key_close){_VALUES[0]} more(?P<end>.*)",
        after,
        flags=re.DOTALL,
    )
    if match is None:
        return None
    end = _end_of_calls(form, match["end"])
    if end is None:
        return None
    value_close = _common_prefix(match["value_close"], end)
    if syntax.value_close.strip() not in value_close:
        return None
    further = two.rpartition(f"{_VALUES[0]} more")[2].partition(_NAMES[1])[0] if _NAMES[1] in two else None
    between = None if further is None else further.removeprefix(value_close)
    if match["value_close"] != value_close:  # white space between parameters that is not before the end
        value_close, end, between = syntax.value_close, end[len(value_close) :], form.between
    else:
        end = end.removeprefix(value_close)
    fixed = replace(syntax, key_open=mark, key_close=match["key_close"], value_close=value_close)
    return replace(form, syntax=fixed, begin=begin, middle=match["middle"], between=between, end=end)


def _common_prefix(one: str, other: str) -> str:
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


# -- guesses


def _guess(one: str, two: str, plain: str) -> ToolFormat | None:
    """Return the format that renderings show, for a template of an unknown family.

    The marks of a call are those that a plain answer does not have.
    """
    name_at = one.find(_NAMES[0])
    arguments = _object(0).search(one, name_at)
    if name_at < 0 or arguments is None:
        return None
    before, middle = one[:name_at], one[name_at + len(_NAMES[0]) : arguments.start()]
    rest = one[arguments.end() :]
    is_object = re.search(r'\{\s*"(tool_)?name":\s*"$', before) is not None
    opened = _marks_of_calls(before, plain)
    closed = _marks_of_calls(rest, plain)
    begin = before[_first_of_block(opened, before) :] if opened else before[_begin_of_object(one, name_at) :]
    if not opened and not is_object:
        return None
    form = ToolFormat(
        name="guess",
        open=opened[-1][0] if opened else "",
        close=closed[0][0] if closed else "",
        begin=begin,
        middle=middle,
        between=_between(two),
    )
    end = _end_of_calls(form, rest)
    return replace(form, open=re.match(_MARKER, begin)[0] if opened else "", end=end or "")  # type: ignore[index]


def _marks_of_calls(text: str, plain: str) -> list[re.Match[str]]:
    """Return the markers in a text that mark neither turns, which a plain answer shows, nor reasoning."""
    marks = re.finditer(_MARKER, text)
    return [mark for mark in marks if mark[0] not in plain and not re.search("think|reason|thought", mark[0], re.I)]


def _first_of_block(marks: Sequence[re.Match[str]], text: str) -> int:
    """Return the start of the last run of markers that have at most white space between them."""
    start = marks[-1].start()
    for mark in reversed(marks[:-1]):
        if text[mark.end() : start].strip():
            break
        start = mark.start()
    return start


def _from_response_template(response: Any) -> ToolFormat | None:
    """Return the format of a tokenizer's `response_template`, if that has plain markers.

    transformers' parser for it (`parse_response`) is not used, because it applies regular expressions from the
    repository to the answer without a time limit, and raises on malformed calls (transformers 5.18 to 5.24).
    """
    fields = response.get("fields") if isinstance(response, dict) else None
    spec = fields.get("tool_calls") if isinstance(fields, dict) else None
    if not isinstance(spec, dict) or spec.get("content") != "json":
        return None
    opened, closed = spec.get("open"), spec.get("close", "")
    if not (isinstance(opened, str) and opened and isinstance(closed, str)):
        return None
    return between_marks("response_template", opened, closed)
