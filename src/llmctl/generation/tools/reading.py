"""Lenient parsing of tool calls: any white space, any order of keys, lists or single objects."""

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llmctl.generation.tools.format import ToolFormat


class ParsedCall(NamedTuple):
    """A call. Its arguments are the text of a JSON object."""

    name: str
    arguments: str


class _RawCall(NamedTuple):
    """A call whose arguments have not been converted to the types in the tool's schema."""

    name: str
    arguments: Mapping[str, Any]


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
    for end in _ends(text, form, final=final):
        calls = _parse_block(_inner(text[:end], form), form, tools)
        if calls:
            return calls, end
        if end < len(text) and form.syntax == "object" and not _ends_in_string(text[:end]):
            return [], end
    if final:
        return [], len(text)
    if not form.close and not _may_be_object(text, form):
        return [], len(text)
    return None


def _ends(text: str, form: ToolFormat, *, final: bool) -> Iterator[int]:
    """Yield the possible ends of the block: after each closing marker, and at the end of the answer."""
    if form.close:
        start = len(form.open)
        while (position := text.find(form.close, start)) >= 0:
            start = position + len(form.close)
            yield start
    if final:
        yield len(text)


def _may_be_object(text: str, form: ToolFormat) -> bool:
    """Return True if unmarked text may still become a call."""
    begun = text.removeprefix(form.open).removeprefix("<|python_tag|>").lstrip()
    if form.syntax == "object" and not form.open:
        return not begun or re.match(r"[\[{]\s*(?:[\[{\"]|$)", begun) is not None
    return True


def _inner(block: str, form: ToolFormat) -> str:
    inner = block.strip().removeprefix(form.open).removeprefix("<|python_tag|>")
    return (inner.removesuffix(form.close) if form.close else inner).strip()


def _ends_in_string(block: str) -> bool:
    """Return True if the block ends inside a JSON string, so that its closing marker may be part of the string."""
    quotes = re.findall(r'\\.|"', block, flags=re.DOTALL)
    return quotes.count('"') % 2 == 1


def _parse_block(inner: str, form: ToolFormat, tools: Mapping[str, Any]) -> list[ParsedCall]:
    """Return the calls of a block; none if any part of it is not a call."""
    readers = {
        "object": _objects,
        "inline": _inline,
        "xml": _xml,
        "keys": _keys,
        "call": _call_of_keys,
        "python": _python,
    }
    for read in dict.fromkeys([readers[form.syntax], _objects]):
        try:
            calls = [ParsedCall(call.name, _arguments_json(call, tools.get(call.name))) for call in read(inner, form)]
        except (ValueError, RecursionError, SyntaxError, TypeError, MemoryError):
            continue
        if calls and all(call.name in tools for call in calls):
            return calls
    return []


class _Bare(str):
    """An argument written as bare text. The tool's schema decides its type."""

    __slots__ = ()


def _arguments_json(call: _RawCall, schema: Any) -> str:
    """Return the arguments as JSON.

    Raises:
        ValueError: the arguments contain a number that JSON cannot represent.
    """
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    arguments = {
        key: _convert(value, properties.get(key)) if isinstance(value, _Bare) else value
        for key, value in call.arguments.items()
    }
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate must be escaped
        text = json.dumps(arguments, allow_nan=False)
    return text


def _convert(text: str, schema: Any) -> Any:
    """Return bare text as a string if the schema allows a string, otherwise parsed as JSON."""
    types = _types(schema)
    if not types or types == {"string"}:
        return str(text)
    try:
        value = json.loads(text if text not in ("True", "False", "None") else _AS_JSON[text])
    except (ValueError, RecursionError):
        return str(text)
    return str(text) if "string" in types and not isinstance(value, list | dict) and value is not None else value


_AS_JSON = {"True": "true", "False": "false", "None": "null"}


def _types(schema: Any) -> set[str]:
    """Return the types that a schema allows explicitly."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type", ())
    types = {named} if isinstance(named, str) else {name for name in named if isinstance(name, str)}
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        types |= _types(inner)
    return types


def _objects(inner: str, form: ToolFormat) -> Iterator[_RawCall]:
    """Parse {"name": …, "arguments": …}: one object, a list, or several separated by commas, semicolons or markers."""
    rest = inner
    while rest:
        value, end = json.JSONDecoder(parse_constant=_no_constant).raw_decode(rest)
        for call in value if isinstance(value, list) else [value]:
            yield _object_call(call)
        rest = rest[end:].lstrip(" \t\r\n;,")
        for marker in (form.close, form.open):
            rest = rest.removeprefix(marker).lstrip() if marker else rest


def _object_call(value: Any) -> _RawCall:
    if not isinstance(value, dict):
        raise TypeError("a call is an object")
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name = value.get("name", value.get("tool_name", value.get("function")))
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    if isinstance(arguments, str):
        arguments = json.loads(arguments, parse_constant=_no_constant)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("a call has a name and an object of arguments")
    return _RawCall(name, arguments)


def _inline(inner: str, form: ToolFormat) -> Iterator[_RawCall]:
    """Parse calls that consist of a name, a separator and JSON."""
    prefix = form.begin.removeprefix(form.open).strip()
    rest = inner
    while rest:
        name = re.match(r"\s*([^\s{\[<(]+)", rest.removeprefix(prefix) if prefix else rest)
        opened = rest.find("{")
        if name is None or opened < 0:
            raise ValueError("not a call")
        arguments, end = json.JSONDecoder(parse_constant=_no_constant).raw_decode(rest[opened:])
        if not isinstance(arguments, dict):
            raise TypeError("arguments are an object")
        yield _RawCall(name[1], arguments)
        tail = rest[opened + end :]
        separator = _ignoring_white_space(form.between).match(tail) if form.between else None
        rest = prefix + tail[separator.end() :] if separator else ""


def _ignoring_white_space(text: str) -> re.Pattern[str]:
    """Return a pattern that matches a text with any white space between its characters."""
    return re.compile(r"\s*" + r"\s*".join(re.escape(letter) for letter in "".join(text.split())))


def _xml(inner: str, form: ToolFormat) -> Iterator[_RawCall]:
    """Parse <function=name><parameter=key>value</parameter></function>."""
    functions = list(re.finditer(r"<function=([^>\n]+)>(.*?)</function>", inner, flags=re.DOTALL))
    for function in functions:
        pairs = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", function[2], flags=re.DOTALL)
        yield _RawCall(function[1].strip(), {key.strip(): _Bare(value) for key, value in pairs})


def _keys(inner: str, form: ToolFormat) -> Iterator[_RawCall]:
    """Parse name<arg_key>key</arg_key><arg_value>value</arg_value>."""
    name = re.match(r"\s*([^\s<]+)", inner)
    if name is None or inner.startswith("{"):
        raise ValueError("a call has a name")
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", inner, flags=re.DOTALL)
    yield _RawCall(name[1], {key.strip(): _Bare(value) for key, value in pairs})


def _call_of_keys(inner: str, form: ToolFormat) -> Iterator[_RawCall]:
    """Parse call:name{key:value}, with strings between <|"|>, <escape> or quotes."""
    call = re.fullmatch(r"call:([^\s{]+)\s*(\{.*\})", inner, flags=re.DOTALL)
    if call is None:
        raise ValueError("not a call")
    strings: list[str] = []

    def keep(match: re.Match[str]) -> str:
        strings.append(json.dumps(match[1] if match[1] is not None else match[2]) if match[3] is None else match[3])
        return f"\0{len(strings) - 1}\0"

    if "\0" in call[2]:
        raise ValueError("not a call")
    marked = re.sub(r'<\|"\|>(.*?)<\|"\|>|<escape>(.*?)<escape>|("(?:\\.|[^"\\])*")', keep, call[2], flags=re.DOTALL)
    quoted = re.sub(r"(?<=[{,])\s*([\w-]+)\s*:", r'"\1":', marked)
    arguments = json.loads(
        re.sub(r"\0(\d+)\0", lambda match: strings[int(match[1])], quoted), parse_constant=_no_constant
    )
    yield _RawCall(call[1], arguments)


def _python(inner: str, form: ToolFormat) -> Iterator[_RawCall]:
    """Parse [name(key="value")] as Python literals. It is never executed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # for invalid escapes in the model's text
        tree = ast.parse(inner, mode="eval").body
    for call in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("a call has named arguments")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
        json.dumps(arguments, allow_nan=False)
        yield _RawCall(ast.unparse(call.func), arguments)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
