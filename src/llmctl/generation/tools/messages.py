"""Conversion of conversations with tool calls for a chat template."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.generation.marks import ID, INDEX, NAME
from llmctl.generation.tools.format import HERMES, ToolFormat
from llmctl.generation.tools.recognition import template_call
from llmctl.generation.tools.schema import object_schema, properties_of

Message = Mapping[str, Any]

_TOOLS_PROMPT = """# Tools

You may call one or more functions to help with what the user asks. Their signatures stand here, one a line:
<tools>
{tools}
</tools>

{call}"""
_HERMES_CALL = """For each call, write an object with the function's name and its arguments within \
<tool_call></tool_call>, and nothing else:
<tool_call>
{"name": <name>, "arguments": <object of arguments>}
</tool_call>"""


def for_template(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], form: ToolFormat
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the messages and arguments with which to call `apply_chat_template` for a conversation with tools.

    Args:
        messages: Messages in OpenAI's format, with text as content. Arguments of the assistant's `tool_calls` are JSON
            text, and results of tools have `tool_call_id`.
        tools: Tools in OpenAI's format; may be empty.
        form: The template's format.
    """
    names: dict[str, str] = {}
    converted = [_convert(message, form, names) for message in messages]
    if form.template_lacks_tools:
        converted = _merge_user_turns(converted)
    if not tools:
        return converted, {}
    plain = [_with_parameters(tool) for tool in tools]
    if form.placement == "argument":
        return converted, {"tools": plain}
    role = "user" if form.placement == "user" else "system"
    if not converted or converted[0]["role"] != role:
        converted.insert(0, {"role": role, "content": ""})
    if form.placement == "message":
        converted[0]["tools"] = json.dumps([tool["function"] for tool in plain], ensure_ascii=False)
        return converted, {}
    described = _TOOLS_PROMPT.format(
        tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in plain), call=_call_instruction(form)
    )
    content = converted[0]["content"]
    parts = (described, content) if form.placement == "user" else (content, described)
    converted[0]["content"] = _joined([part for part in parts if part], "\n\n")
    return converted, {}


def _joined(contents: Sequence[Any], separator: str) -> Any:
    """Return contents as one: a text if all are texts, else a list of parts."""
    if all(isinstance(content, str) for content in contents):
        return separator.join(contents)
    lists = [[{"type": "text", "text": one}] if isinstance(one, str) else list(one) for one in contents]
    parts = lists[0]
    for more in lists[1:]:
        parts = [*parts, {"type": "text", "text": separator}, *more]
    return parts


def _with_parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool with parameters that have a type and properties, without which many templates fail."""
    parameters = object_schema(tool["function"].get("parameters"))
    return {
        **tool,
        "function": {**tool["function"], "parameters": {**parameters, "properties": properties_of(parameters)}},
    }


def _merge_user_turns(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge consecutive user messages, because templates often require alternating turns."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        if merged and message["role"] == merged[-1]["role"] == "user":
            merged[-1] = {**merged[-1], "content": _joined([merged[-1]["content"], message["content"]], "\n")}
        else:
            merged.append(message)
    return merged


def _convert(message: Message, form: ToolFormat, names: dict[str, str]) -> dict[str, Any]:
    """Convert one message. Record the function name of each call id in `names`."""
    converted = {key: value for key, value in message.items() if value is not None}
    converted.setdefault("content", "")
    calls = converted.pop("tool_calls", None)
    reasoning = converted.pop("reasoning_content", None)
    if calls:
        names.update({str(call["id"]): str(call["function"]["name"]) for call in calls})
    if form.template_lacks_tools and not form.renders_calls:
        return _as_text(converted, calls, form)
    if reasoning and form.reasoning_key is not None:
        converted[form.reasoning_key] = reasoning
    if calls and form.renders_calls:
        converted["tool_calls"] = [_convert_call(call, form) for call in calls]
        _separate_content(converted, form)
    elif calls:
        return _as_text(converted, calls, form)
    if converted["role"] == "tool":
        call_id = str(converted.get("tool_call_id", ""))
        converted.setdefault("name", names.get(call_id, "tool"))
        converted["tool_call_id"] = _template_id(call_id, form)
    return converted


def _arguments_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call."""
    arguments = str(call["function"].get("arguments") or "{}")
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):  # arguments from an earlier answer may be malformed
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


def _convert_call(call: Mapping[str, Any], form: ToolFormat) -> dict[str, Any]:
    converted: Any = _arguments_of(call)
    if form.text_arguments:
        converted = str(call["function"].get("arguments") or "{}")
    return template_call(str(call["function"]["name"]), converted, _template_id(str(call["id"]), form))


def _template_id(call_id: str, form: ToolFormat) -> str:
    """Return a call's id, shortened to nine letters and digits if the template requires that."""
    if not form.short_ids or (len(call_id) == 9 and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _separate_content(message: dict[str, Any], form: ToolFormat) -> None:
    """Move the text of a message with calls to where the template takes it."""
    if form.name == "harmony" and message.get("thinking") and message["content"]:
        # gpt-oss takes either text or reasoning beside a call
        message["thinking"], message["content"] = f"{message['thinking']}\n\n{message['content']}", ""
    if form.no_content:
        message["content"] = None


def _as_text(message: dict[str, Any], calls: Sequence[Mapping[str, Any]] | None, form: ToolFormat) -> dict[str, Any]:
    """Convert a message for a template that does not render calls, or supports only user, assistant and system."""
    content = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if not calls:
        return {**message, "content": content}
    return {**message, "content": f"{content}\n{calls_text(calls, form)}".strip()}


def calls_text(calls: Sequence[Mapping[str, Any]], form: ToolFormat) -> str:
    """Return the text of calls as a model of the family writes them.

    Args:
        calls: Calls in OpenAI's format.
        form: The family's format.
    """
    text, is_after = "", int(ID in form.end)  # the id of a call is after it in some formats
    for number, call in enumerate(calls):
        before = form.begin if number == 0 else form.between if form.between is not None else form.end + form.begin
        name, arguments = str(call["function"]["name"]), _arguments_of(call)
        name = json.dumps(name, ensure_ascii=False)[1:-1] if form.is_json_object else name
        text += (
            _filled(before, number - is_after, name)
            + name
            + _filled(form.middle, number, name)
            + form.syntax.write(arguments)
        )
    return text + _filled(form.end, len(calls) - is_after, "")


def _filled(part: str, number: int, name: str) -> str:
    """Return a fixed part of a call with the values that the model chooses."""
    return part.replace(INDEX, str(number)).replace(ID, f"call{number:05}").replace(NAME, name)


def _call_instruction(form: ToolFormat) -> str:
    """Return the instruction for writing a call, for templates that do not describe tools."""
    if form.begin == HERMES.begin:
        return _HERMES_CALL
    sample = [template_call("<name>", "{}", "")]
    return f"For each call, write the function's name and its arguments like this:\n{calls_text(sample, form)}"
