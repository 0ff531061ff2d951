"""Parsing of tool calls in an answer: exactly in the family's format, or leniently as JSON objects.

Both decide at the first position at which the text is complete, so that text in pieces gives the same as the whole.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmctl.generation.tools.families import ToolFormat
from llmctl.generation.tools.scan import IncompleteError, NotACallError, json_value, matches, skip, skip_any
from llmctl.generation.tools.schema import arguments_json, with_types

_PYTHON_TAG = "<|python_tag|>"  # Llama 3 writes it before calls


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
        arguments, at = form.syntax.scan(text, at, following, final=final)
        return ParsedCall(name, arguments_json(with_types(arguments, tools[name]))), at

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
        """Return the position after the end of the calls. At the end of the answer, marks may be missing."""
        try:
            return skip(text, at, self._form.end)
        except IncompleteError:
            brackets = re.match(r"[\s}\])]*", self._form.end)
            if final and brackets is not None:
                skip(text, at, brackets[0])
                return len(text)
            raise


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
        is_incomplete = is_incomplete or name.startswith(text[at:])
    raise IncompleteError if is_incomplete else NotACallError


class _Objects:
    """Reads JSON objects with a name and arguments: one, a list, or several with separators or markers between them."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form

    def read(self, text: str, tools: Mapping[str, Any], *, final: bool) -> tuple[list[ParsedCall], int]:
        """Return the calls at the beginning of a text, and their length."""
        opened, closed = self._form.open, self._form.close
        at = len(opened) if opened else 0
        at += len(_PYTHON_TAG) if text.startswith(_PYTHON_TAG, at) else 0
        calls: list[ParsedCall] = []
        while True:
            value, at = json_value(text, at)
            for call in value if isinstance(value, list) else [value]:
                calls.append(self._call(call, tools))
            end = self._after(text, at, closed)
            if end is not None:
                return calls, end
            further = len(text) - len(text[at:].lstrip(" \t\r\n;,"))
            if further == len(text):
                if final or not closed:
                    return calls, at
                raise IncompleteError
            if text[further] not in "[{":
                if final or not closed:
                    return calls, at
                raise NotACallError
            at = further

    def _after(self, text: str, at: int, closed: str) -> int | None:
        """Return the position after the closing marker, or None if something else follows."""
        if not closed:
            return None
        try:
            return skip_any(text, at, (closed,))
        except NotACallError:
            return None

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
