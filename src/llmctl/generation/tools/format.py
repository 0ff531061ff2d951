"""The tool-call format of a chat template, recognised by rendering sample calls.

This needs no list of model names, and answers can be constrained to the format on which the model was trained. If a
template has no tool support, tools are described in the system message in the format of Hermes
(NousResearch/Hermes-Function-Calling), on which many small models were trained.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from llmctl.config import ChatSection
from llmctl.generation.prompt import template_text
from llmctl.machine.sandbox import FailedError, LimitExceededError, run_bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Syntax = Literal["object", "inline", "xml", "keys", "call", "python"]
Placement = Literal["argument", "message", "system", "user"]

_NAMES = ("probe_tool_one", "probe_tool_two")
_KEY, _VALUES = "probe_key", ("probe value one", "probe value two")
_IDS = ("probe0001", "probe0002")
_TEXT = "probe text"
_MARKER = r"(?:<[^<>\s]{1,40}>|\[/?[A-Z_]{3,30}\])"  # <tool_call>, <|tool_call|>, [TOOL_CALLS]
_formats: "WeakKeyDictionary[Any, dict[str | None, ToolFormat]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class ToolFormat:
    """The format in which a template describes tools and a model writes calls.

    Calls are `begin` name `middle` arguments, then `between` name `middle` arguments for each further call, then `end`.

    Attributes:
        syntax: `object` ({"name": …, "arguments": …} as JSON), `inline` (a name, then JSON), `xml` (<function=name>),
            `keys` (a name, <arg_key> and <arg_value>), `call` (call:name{key:value}), `python` (name(key=value)).
        open: The marker that opens calls; empty if there is none.
        close: The marker that closes a call; empty if there is none.
        begin: The text before the first name.
        middle: The text between a name and its arguments.
        between: The text between arguments and the next name; None if the template allows one call only.
        end: The text after the last arguments.
        placement: The way in which the template gets tools: `argument` (its argument `tools`), `message` (the key
            `tools` of the system message), `system` (the text of the system message), or `user` (the text of the first
            user message, if the template has no system message).
        text_arguments: True if the template expects arguments as JSON text.
        short_ids: True if the template accepts only ids of nine letters and digits.
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
    def template_lacks_tools(self) -> bool:
        """True if the template has no tool support, so that tools, calls and results must be plain text."""
        return self.placement in ("system", "user")

    @property
    def markers(self) -> str:
        """All text that marks calls. Special tokens in it must not be removed from the answer."""
        return "\0".join(
            [self.open, self.close, self.begin, self.middle, self.between or "", self.end, "<|python_tag|>"]
        )


HERMES = ToolFormat()


def tool_format(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection) -> ToolFormat:
    """Return the tool-call format of the chat template in use. The result is cached per template.

    Raises:
        UserError: the template's file cannot be read.
    """
    template = template_text(chat)
    formats = _formats.setdefault(tokenizer, {})
    if template not in formats:
        formats[template] = _recognise(_renderings(tokenizer, template), getattr(tokenizer, "response_template", None))
    return formats[template]


def shown_tokens(tokenizer: "PreTrainedTokenizerBase", form: ToolFormat) -> frozenset[int]:
    """Return the special tokens that are part of calls and must not be removed from the text."""
    special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(id_ for id_, content in special.items() if content in form.markers)


def template_call(name: str, arguments: Any, id_: str) -> dict[str, Any]:
    """Return a tool call in the form that chat templates of transformers expect."""
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


# -- recognition


def _sample_conversations() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Return conversations and template arguments whose renderings show the format."""
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
        calls = [template_call(_NAMES[n], arguments[n], ids[n]) for n in range(count)]
        return [user, {"role": "assistant", "content": "", "tool_calls": calls}]

    return {
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


def _renderings(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> dict[str, str | None]:
    """Render the samples; a result is None if the template fails. The template is untrusted and runs with limits."""
    if template is None and not tokenizer.chat_template:
        return {}

    def render() -> dict[str, str | None]:
        rendered: dict[str, str | None] = {}
        for name, (messages, arguments) in _sample_conversations().items():
            try:
                rendered[name] = str(
                    tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)
                )
            except Exception:  # noqa: BLE001 (a template may refuse anything, in any way)
                rendered[name] = None
        return rendered

    try:
        return dict(run_bounded(render))
    except (LimitExceededError, FailedError):
        return {}


def _recognise(rendered: dict[str, str | None], response: Any) -> ToolFormat:
    """Return the format that the renderings show, or else the format of a tokenizer's `response_template`."""
    if _NAMES[0] in (rendered.get("tools") or ""):
        placement: Placement = "argument"
    elif _NAMES[0] in (rendered.get("message") or ""):
        placement = "message"
    else:
        return replace(HERMES, placement="system" if not rendered or _TEXT in (rendered["system"] or "") else "user")
    one, two, text_arguments = rendered.get("one") or "", rendered.get("two"), False
    if not _shows_arguments(one) and _shows_arguments(rendered.get("one_text") or ""):
        one, two, text_arguments = rendered["one_text"] or "", rendered.get("two_text"), True
    return replace(
        _from_sample(rendered, one, two) or _from_response_template(response) or _from_prompt(rendered),
        placement=placement,
        text_arguments=text_arguments,
        short_ids=bool(one) and not text_arguments and rendered.get("long_id") is None,
    )


def _object(number: int) -> re.Pattern[str]:
    return re.compile(rf'\{{\s*"{_KEY}":\s*"{_VALUES[number]}"\s*\}}')


def _shows_arguments(text: str) -> bool:
    """Return True if the text has arguments as a JSON object, or in another known syntax."""
    patterns = (
        _object(0).pattern,
        rf"<parameter={_KEY}>",
        rf"<arg_key>{_KEY}<",
        rf"call:{_NAMES[0]}\{{",
        rf"{_NAMES[0]}\(",
    )
    return any(re.search(pattern, text) for pattern in patterns)


def _from_sample(rendered: dict[str, str | None], one: str, two: str | None) -> ToolFormat | None:
    """Return the format shown by two rendered conversations, one with one call and one with two calls."""
    start = _start_of_turn(one, rendered.get("prompt") or "")
    end_of_turn = (rendered.get("plain") or _TEXT).rpartition(_TEXT)[2]
    body = one[start:].removesuffix(end_of_turn)
    if _NAMES[0] not in body:
        return None
    before, _, after = body.partition(_NAMES[0])
    if (other := _other_syntax(before, after)) is not None:
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
    """Return the start of the assistant's turn: where the text differs from the prompt, but never inside a marker."""
    start = next((n for n, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt)))
    inside = next((m for m in re.finditer(_MARKER, text) if m.start() < start < m.end()), None)
    return inside.start() if inside else start


def _between(two: str | None) -> str | None:
    """Return the text between the first call's arguments and the second call's name."""
    if two is None:
        return None
    first = _object(0).search(two)
    position = two.rfind(_NAMES[1])
    return _without_id(two[first.end() : position]) if first and position > first.end() else None


def _without_id(text: str) -> str:
    """Remove ids, because they are assigned by the runtime and not written by the model."""
    return re.sub(r',\s*"id":\s*"[^"]*"', "", text)


def _other_syntax(before: str, after: str) -> ToolFormat | None:
    """Return the format if its arguments are not JSON. Constrained answers then have JSON arguments instead."""
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
        marked = _between_markers(marks[-1] if marks else "", closing[0].strip() if closing else "")
        return replace(marked, syntax="python")
    return None


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
    return _between_markers(opened, closed)


def _between_markers(opened: str, closed: str) -> ToolFormat:
    """Return the format of JSON objects between two markers."""
    begin, end = f'{opened}{{"name": "', f"}}{closed}"
    return ToolFormat("object", opened, closed, begin, HERMES.middle, end + begin, end)


def _from_prompt(rendered: dict[str, str | None]) -> ToolFormat:
    """Return the format that the template describes to the model, for templates that do not render earlier calls."""
    prompt = rendered.get("tools") or rendered.get("message") or ""
    if "<function=" in prompt:
        return replace(HERMES, syntax="xml")
    for opened, closed in (("<|tool_call|>", "<|/tool_call|>"), ("[TOOL_CALLS]", "")):
        if opened in prompt and "<tool_call>" not in prompt:
            return _between_markers(opened, closed)
    return HERMES
