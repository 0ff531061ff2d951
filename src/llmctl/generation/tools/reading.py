"""Parsing of tool calls in an answer: exactly in the family's format, or leniently as JSON objects.

Both decide at the first position at which the text is complete, so that text in pieces gives the same as the whole.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmctl.generation.tools.arguments import JsonArguments
from llmctl.generation.tools.format import ToolFormat
from llmctl.generation.tools.scan import IncompleteError, NotACallError, json_value, matches, skip
from llmctl.generation.tools.schema import arguments_json

_PYTHON_TAG = "<|python_tag|>"  # Llama 3 writes it before calls
_BRACKETS = re.compile(r"[\s}\])]*")
_FIRST_MARK = re.compile(r"[\s}\])]*(?:.*?(?:</[^<>]*>|<\|close\|>\w+<\|sep\|>))?", flags=re.DOTALL)


class ParsedCall(NamedTuple):
    """A call. Its arguments are the text of a JSON object."""

    name: str
    arguments: str


def parse_calls(
    text: str, form: ToolFormat, tools: Mapping[str, Any], *, final: bool
) -> tuple[list[ParsedCall], int] | None:
    """Parse text that begins with the opening marker of calls.

    Args:
        text: The answer, beginning with the marker.
        form: The format of calls.
        tools: The parameter schema of each tool; a call of any other tool is text.
        final: True if the text is complete.

    Returns:
        The calls and their length in characters; or no calls and the length of plain text; or None if more text is
        needed to decide.
    """
    is_incomplete = False
    readers: list[_Exact | _Objects] = [_Exact(form), *(_Exact(other) for other in form.others), _Objects(form)]
    for reader in readers:
        try:
            return reader.read(text, tools, final=final)
        except IncompleteError:
            is_incomplete = True
        except (ValueError, TypeError, RecursionError, MemoryError):
            continue
    if is_incomplete and not final:
        return None
    return [], max(1, len(form.open))


class _Exact:
    """Reads calls in a format."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form

    def read(self, text: str, tools: Mapping[str, Any], *, final: bool) -> tuple[list[ParsedCall], int]:
        """Return the calls at the beginning of a text, and their length."""
        form, calls = self._form, []
        text, tag = text.removeprefix(_PYTHON_TAG), len(text) - len(text.removeprefix(_PYTHON_TAG))
        at = skip(text, 0, form.begin)
        while True:
            call, at = self._call(text, at, tools, final=final)
            calls.append(call)
            further = self._further(text, at, final=final)
            if further is None:
                return calls, tag + self._end(text, at, final=final)
            at = further

    def _call(self, text: str, at: int, tools: Mapping[str, Any], *, final: bool) -> tuple[ParsedCall, int]:
        form = self._form
        name, at = _name_at(text, at, form.middle, tools)
        following = (form.end,) if form.between is None else (form.end, form.between)
        arguments, at = form.syntax.scan(text, at, following=following, schema=tools[name], final=final)
        return ParsedCall(name, arguments_json(arguments)), at

    def _further(self, text: str, at: int, *, final: bool) -> int | None:
        """Return the position of the next call of the same block; None if the calls end here."""
        form = self._form
        if form.between is None or (form.open and form.open in form.between):
            return None  # each call has a block of its own
        try:
            return skip(text, at, form.between)
        except NotACallError:
            return None
        except IncompleteError:
            if final or (not form.between.startswith(form.end) and self._has_ended(text, at)):
                return None
            raise

    def _has_ended(self, text: str, at: int) -> bool:
        return matches(text, at, self._form.end)

    def _end(self, text: str, at: int, *, final: bool) -> int:
        """Return the position after the end of the calls. At the end of the answer, marks may be missing.

        The parts that show that the arguments are complete may not.
        """
        try:
            return skip(text, at, self._form.end)
        except IncompleteError:
            if not final:
                raise
            needed = _BRACKETS if isinstance(self._form.syntax, JsonArguments) else _FIRST_MARK
            skip(text, at, needed.match(self._form.end)[0])  # type: ignore[index]
            return len(text)


def _name_at(text: str, at: int, middle: str, tools: Mapping[str, Any]) -> tuple[str, int]:
    """Return the name of a tool at `at`, and the position after the part that follows it."""
    while at < len(text) and text[at].isspace():
        at += 1
    is_incomplete = False
    for name in sorted(tools, key=len, reverse=True):
        if text.startswith(name, at):
            try:
                end = skip(text, at + len(name), middle)
            except IncompleteError:
                is_incomplete = True
            except NotACallError:
                continue
            else:
                return name, end
        is_incomplete = is_incomplete or name.startswith(text[at : at + len(name)])
    raise IncompleteError if is_incomplete else NotACallError


class _Objects:
    """Reads JSON objects with a name and arguments: one, a list, or several with separators or markers between them."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form

    def read(self, text: str, tools: Mapping[str, Any], *, final: bool) -> tuple[list[ParsedCall], int]:
        """Return the calls at the beginning of a text, and their length."""
        at = len(self._form.open)
        at = skip(text, at, _PYTHON_TAG) if matches(text, at, _PYTHON_TAG) else at
        calls: list[ParsedCall] = []
        while True:
            value, at = json_value(text, at)
            for call in value if isinstance(value, list) else [value]:
                calls.append(self._call(call, tools))
            if not calls:
                raise NotACallError
            if (end := self._end(text, at, final=final)) is not None:
                return calls, end
            at = len(text) - len(text[at:].lstrip(" \t\r\n;,"))

    def _end(self, text: str, at: int, *, final: bool) -> int | None:
        """Return the position after the closing marker, if there is one; None if something else follows."""
        try:
            return skip(text, at, self._form.close)
        except NotACallError:
            return None
        except IncompleteError:
            if final:
                return len(text)
            raise

    def _call(self, value: Any, tools: Mapping[str, Any]) -> ParsedCall:
        if not isinstance(value, dict):
            raise TypeError("a call is an object")
        if len(value) == 1 and (name := next(iter(value))) in tools:
            value = {"name": name, "arguments": value[name]}
        value = value["function"] if isinstance(value.get("function"), dict) else value
        name = value.get("name", value.get("tool_name", value.get("function")))
        arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
            raise TypeError("a call has the name of a tool and an object of arguments")
        return ParsedCall(name, arguments_json(arguments))
