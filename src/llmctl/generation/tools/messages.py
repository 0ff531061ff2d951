"""Conversations with tool calls, in the form that a chat template takes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.generation.tools.format import ToolFormat, called

Message = Mapping[str, Any]

_TOLD = """# Tools

You may call one or more functions to help with what the user asks. Their signatures stand here, one a line:
<tools>
{tools}
</tools>

For each call, write an object with the function's name and its arguments within <tool_call></tool_call>, and nothing \
else:
<tool_call>
{{"name": <name>, "arguments": <object of arguments>}}
</tool_call>"""


def for_template(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], form: ToolFormat
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A conversation and its tools as the model's template takes them.

    Args:
        messages: As in OpenAI's API, the contents as texts: an assistant's `tool_calls` with arguments as the text of
            JSON, and the answers of tools with `tool_call_id`.
        tools: As in OpenAI's API; empty where the model is to be told of none.
        form: How this model's template writes calls.

    Returns:
        The messages, and the arguments for `apply_chat_template`.
    """
    names: dict[str, str] = {}
    taken = [_message(message, form, names) for message in messages]
    if form.is_told_in_text:
        taken = _joined(taken)
    if not tools:
        return taken, {}
    plain = [dict(tool) for tool in tools]
    if form.placement == "argument":
        return taken, {"tools": plain}
    role = "user" if form.placement == "user" else "system"
    if not taken or taken[0]["role"] != role:
        taken.insert(0, {"role": role, "content": ""})
    if form.placement == "message":
        taken[0]["tools"] = json.dumps([tool["function"] for tool in plain], ensure_ascii=False)
        return taken, {}
    told = _TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in plain))
    parts = (told, taken[0]["content"]) if form.placement == "user" else (taken[0]["content"], told)
    taken[0]["content"] = "\n\n".join(part for part in parts if part)
    return taken, {}


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of the user one after the other as one: templates often want turns."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "user":
            joined[-1] = {**joined[-1], "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _message(message: Message, form: ToolFormat, names: dict[str, str]) -> dict[str, Any]:
    """One message; `names` learns which call had which function."""
    taken = {key: value for key, value in message.items() if value is not None}
    taken.setdefault("content", "")
    calls = taken.pop("tool_calls", None)
    if calls:
        names.update({str(call["id"]): str(call["function"]["name"]) for call in calls})
    if form.is_told_in_text:
        return _as_text(taken, calls)
    if calls:
        taken["tool_calls"] = [_call(call, form) for call in calls]
    if taken["role"] == "tool":
        number = str(taken.get("tool_call_id", ""))
        taken.setdefault("name", names.get(number, "tool"))
        taken["tool_call_id"] = _id(number, form)
    return taken


def _call(call: Mapping[str, Any], form: ToolFormat) -> dict[str, Any]:
    arguments = str(call["function"].get("arguments") or "{}")
    given: Any = arguments
    if not form.text_arguments:
        try:
            given = json.loads(arguments)
        except (ValueError, RecursionError):  # what a model once wrote may be anything
            given = {"arguments": arguments}
        if not isinstance(given, dict):
            given = {"arguments": given}
    return called(str(call["function"]["name"]), given, _id(str(call["id"]), form))


def _id(number: str, form: ToolFormat) -> str:
    """The id of a call, where need be as nine letters and digits."""
    if not form.short_ids or (len(number) == 9 and number.isalnum()):
        return number
    return hashlib.sha256(number.encode()).hexdigest()[:9]


def _as_text(message: dict[str, Any], calls: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """A message for a template that knows user, assistant and system alone."""
    content = str(message["content"])
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    for call in calls or ():
        name = json.dumps(str(call["function"]["name"]), ensure_ascii=False)
        arguments = call["function"].get("arguments") or "{}"
        content += f'\n<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
    return {**message, "content": content.strip() if calls else content}
