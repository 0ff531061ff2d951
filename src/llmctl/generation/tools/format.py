"""How a model's chat template writes tool calls: found by rendering one and looking.

The same way as `tokenization.end_of_turn_token`: no list of model names has to be kept, and what an answer is held to
is what the model was trained to write. Where a template knows nothing of tools, they are described in the system
message, in the words of Hermes (NousResearch/Hermes-Function-Calling), which many small models have seen.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from llmctl.config import ChatSection
from llmctl.generation.prompt import template_text
from llmctl.machine.sandbox import FailedError, TooMuchError, run_bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Syntax = Literal["object", "inline", "xml", "keys", "call", "python"]
Placement = Literal["argument", "message", "system", "user"]

_NAMES = ("probe_tool_one", "probe_tool_two")
_KEY, _VALUES = "probe_key", ("probe value one", "probe value two")
_IDS = ("probe0001", "probe0002")
_TEXT = "probe text"
_MARKER = r"(?:<[^<>\s]{1,40}>|\[/?[A-Z_]{3,30}\])"  # <tool_call>, <|tool_call|>, [TOOL_CALLS]
_known: "WeakKeyDictionary[Any, dict[str | None, ToolFormat]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class ToolFormat:
    """How tools are told to a model, and how it writes calls.

    A template's calls are `begin` name `middle` arguments, then `between` name `middle` arguments for each further one,
    then `end`.

    Attributes:
        syntax: `object` ({"name": …, "arguments": …} as JSON), `inline` (a name, then JSON), `xml` (<function=name>),
            `keys` (a name, <arg_key> and <arg_value>), `call` (call:name{key:value}), `python` (name(key=value)).
        open: What begins calls; empty where nothing marks them.
        close: What ends a call; empty where nothing does.
        begin: What a template writes before the first name.
        middle: What it writes between a name and its arguments.
        between: What it writes between arguments and the next name; None where it writes one call only.
        end: What it writes after the last arguments.
        placement: Tools reach the template as its `tools`, as `tools` of the system message, in the text of it, or,
            where there can be none, in the user's first words.
        text_arguments: Whether the template wants the arguments as the text of JSON.
        short_ids: Whether the template takes ids of nine letters and digits only.
    """

    syntax: Syntax = "object"
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    begin: str = '<tool_call>\n{"name": "'
    middle: str = '", "arguments": '
    between: str | None = '}\n</tool_call>\n<tool_call>\n{"name": "'
    end: str = "}\n</tool_call>"
    placement: Placement = "argument"
    text_arguments: bool = False
    short_ids: bool = False

    @property
    def is_told_in_text(self) -> bool:
        """Whether the template knows nothing of tools, so that all about them has to be text."""
        return self.placement in ("system", "user")

    @property
    def markers(self) -> str:
        """All text that belongs to calls: the special tokens in it must stay in the answer."""
        return "\0".join(
            [self.open, self.close, self.begin, self.middle, self.between or "", self.end, "<|python_tag|>"]
        )


HERMES = ToolFormat()


def tool_format(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection) -> ToolFormat:
    """How the chat template that is in use writes tool calls. Found once for a template.

    Raises:
        UserError: the template's file cannot be read.
    """
    own = template_text(chat)
    formats = _known.setdefault(tokenizer, {})
    if own not in formats:
        formats[own] = _recognised(_renderings(tokenizer, own), getattr(tokenizer, "response_template", None))
    return formats[own]


def shown_tokens(tokenizer: "PreTrainedTokenizerBase", form: ToolFormat) -> frozenset[int]:
    """The special tokens that stand in calls, and so must not be left out of the text."""
    special = {n: t.content for n, t in tokenizer.added_tokens_decoder.items() if t.special}
    return frozenset(number for number, content in special.items() if content in form.markers)


def called(name: str, arguments: Any, number: str) -> dict[str, Any]:
    """A tool call as transformers' templates take it."""
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


# -- looking


def _renderings(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> dict[str, str | None]:
    """What the template writes for a few conversations, None where it refuses; untrusted, so with limits."""
    if template is None and not tokenizer.chat_template:
        return {}
    user = {"role": "user", "content": "x"}
    tool = {
        "type": "function",
        "function": {
            "name": _NAMES[0],
            "description": "y",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "z"}}},
        },
    }

    def turn(count: int, *, text: bool, ids: Sequence[str] = _IDS) -> list[dict[str, Any]]:
        values: list[Any] = [{_KEY: value} for value in _VALUES]
        arguments = [json.dumps(value) for value in values] if text else values
        calls = [called(_NAMES[n], arguments[n], ids[n]) for n in range(count)]
        return [user, {"role": "assistant", "content": "", "tool_calls": calls}]

    wanted: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "prompt": ([user], {"add_generation_prompt": True}),
        "tools": ([user], {"add_generation_prompt": True, "tools": [tool]}),
        "message": ([{"role": "system", "content": "w", "tools": json.dumps([tool])}, user], {}),
        "system": ([{"role": "system", "content": _TEXT}, user], {}),
        "plain": ([user, {"role": "assistant", "content": _TEXT}], {}),
        "one": (turn(1, text=False), {}),
        "two": (turn(2, text=False), {}),
        "one_text": (turn(1, text=True), {}),
        "two_text": (turn(2, text=True), {}),
        "long_id": (turn(1, text=False, ids=["call_0123456789abcdef"]), {}),
    }

    def render() -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for name, (messages, arguments) in wanted.items():
            try:
                found[name] = str(
                    tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)
                )
            except Exception:  # noqa: BLE001 (a template may refuse anything, in any way)
                found[name] = None
        return found

    try:
        return dict(run_bounded(render))
    except (TooMuchError, FailedError):
        return {}


def _recognised(rendered: dict[str, str | None], response: Any) -> ToolFormat:
    """The format that renderings show, with a tokenizer's `response_template` where they show none."""
    if _NAMES[0] in (rendered.get("tools") or ""):
        placement: Placement = "argument"
    elif _NAMES[0] in (rendered.get("message") or ""):
        placement = "message"
    else:
        return replace(HERMES, placement="system" if not rendered or _TEXT in (rendered["system"] or "") else "user")
    one, two, text_arguments = rendered.get("one") or "", rendered.get("two"), False
    if not _shows_arguments(one) and _shows_arguments(rendered.get("one_text") or ""):
        one, two, text_arguments = rendered["one_text"] or "", rendered.get("two_text"), True
    found = _from_sample(rendered, one, two)
    return replace(
        found or _from_response_template(response) or _from_prompt(rendered),
        placement=placement,
        text_arguments=text_arguments,
        short_ids=bool(one) and not text_arguments and rendered.get("long_id") is None,
    )


def _object(number: int) -> re.Pattern[str]:
    return re.compile(rf'\{{\s*"{_KEY}":\s*"{_VALUES[number]}"\s*\}}')


def _shows_arguments(text: str) -> bool:
    """Whether arguments stand in the text as a JSON object, or in one of the other ways that are known."""
    ways = (
        _object(0).pattern,
        rf"<parameter={_KEY}>",
        rf"<arg_key>{_KEY}<",
        rf"call:{_NAMES[0]}\{{",
        rf"{_NAMES[0]}\(",
    )
    return any(re.search(way, text) for way in ways)


def _from_sample(rendered: dict[str, str | None], one: str, two: str | None) -> ToolFormat | None:
    """The format of a rendered conversation that ends with one call, and of one that ends with two."""
    start = _start_of_turn(one, rendered.get("prompt") or "")
    end_of_turn = (rendered.get("plain") or _TEXT).rpartition(_TEXT)[2]
    body = one[start:].removesuffix(end_of_turn)
    if _NAMES[0] not in body:
        return None
    before, _, after = body.partition(_NAMES[0])
    other = _other_syntax(before, after)
    if other is not None:
        return other
    arguments = _object(0).search(after)
    if arguments is None:
        return None
    middle, end = after[: arguments.start()], _without_id(after[arguments.end() :])
    opened = re.search(_MARKER, before)
    is_object = re.search(r'\{\s*"(tool_)?name":\s*"$', before) is not None
    last = re.findall(_MARKER, end)
    return ToolFormat(
        syntax="object" if is_object else "inline",
        open=opened[0] if opened else "" if is_object else before.strip(),
        close=last[-1] if last else "",
        begin=before if opened is None else before[opened.start() :],
        middle=middle,
        between=_between(two),
        end=end.rstrip(),
    )


def _start_of_turn(text: str, prompt: str) -> int:
    """Where the assistant's words begin: where the text leaves that of the prompt, but never within a marker."""
    start = next((n for n, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt)))
    inside = next((m for m in re.finditer(_MARKER, text) if m.start() < start < m.end()), None)
    return inside.start() if inside else start


def _between(two: str | None) -> str | None:
    """What stands between the first call's arguments and the second call's name."""
    if two is None:
        return None
    first = _object(0).search(two)
    place = two.rfind(_NAMES[1])
    return _without_id(two[first.end() : place]) if first and place > first.end() else None


def _without_id(text: str) -> str:
    """Ids are given by whoever runs the model; the model does not write them."""
    return re.sub(r',\s*"id":\s*"[^"]*"', "", text)


def _other_syntax(before: str, after: str) -> ToolFormat | None:
    """A format whose arguments are not JSON. What is held to a form is then written as JSON in the same place."""
    marks = re.findall(_MARKER, before)
    if before.endswith("<function=") or (marks and f"<parameter={_KEY}>" in after):
        return replace(HERMES, syntax="xml")
    if f"<arg_key>{_KEY}</arg_key>" in after:
        return replace(HERMES, syntax="keys")
    closing = re.search(_MARKER + r"\s*$", after)
    if before.endswith("call:") and after.startswith("{") and marks and closing:
        begin, end = before[before.rfind(marks[-1]) :], closing[0].strip()
        return ToolFormat("call", marks[-1], end, begin, "", end + begin, end)
    if re.match(rf"\({_KEY}=", after) and before.rstrip().endswith("["):
        marked = _marked(marks[-1] if marks else "", closing[0].strip() if closing else "")
        return replace(marked, syntax="python")
    return None


def _from_response_template(response: Any) -> ToolFormat | None:
    """The format that a tokenizer says its answers have, where it says so in plain texts.

    transformers' own parser of it (`parse_response`) is not used: it runs regular expressions of the repository on the
    answer without a limit of time, and raises on a call that a model wrote wrong (transformers 5.18 to 5.24).
    """
    fields = response.get("fields") if isinstance(response, dict) else None
    told = fields.get("tool_calls") if isinstance(fields, dict) else None
    if not isinstance(told, dict) or told.get("content") != "json":
        return None
    opened, closed = told.get("open"), told.get("close", "")
    if not (isinstance(opened, str) and opened and isinstance(closed, str)):
        return None
    return _marked(opened, closed)


def _marked(opened: str, closed: str) -> ToolFormat:
    """JSON objects between two marks."""
    begin, end = f'{opened}{{"name": "', f"}}{closed}"
    return ToolFormat("object", opened, closed, begin, HERMES.middle, end + begin, end)


def _from_prompt(rendered: dict[str, str | None]) -> ToolFormat:
    """The format that the template describes to the model, where it does not write calls of earlier turns itself."""
    told = rendered.get("tools") or rendered.get("message") or ""
    if "<function=" in told:
        return replace(HERMES, syntax="xml")
    for opened, closed in (("<|tool_call|>", "<|/tool_call|>"), ("[TOOL_CALLS]", "")):
        if opened in told and "<tool_call>" not in told:
            return _marked(opened, closed)
    return HERMES
