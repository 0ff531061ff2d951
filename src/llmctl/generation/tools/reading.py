"""A block of text that may be tool calls, read leniently: white space, order of keys, lists or single objects."""

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llmctl.generation.tools.format import ToolFormat


class Found(NamedTuple):
    """A call, its arguments as the text of a JSON object."""

    name: str
    arguments: str


class _Written(NamedTuple):
    """A call as it was written."""

    name: str
    arguments: Mapping[str, Any]


def read_calls(text: str, form: ToolFormat, tools: Mapping[str, Any], *, final: bool) -> tuple[list[Found], int] | None:
    """Read what begins with the text that opens calls.

    Args:
        text: What the model has written, from there on.
        form: How it writes calls.
        tools: The tools that may be called, each with the schema of its parameters; a call of another is none.
        final: Whether no more text will come.

    Returns:
        The calls and how many characters they took; no calls, and how many characters are just text; or None where
        more text has to come first.
    """
    for end in _ends(text, form, final=final):
        calls = _parsed(_inner(text[:end], form), form, tools)
        if calls:
            return calls, end
        if end < len(text) and form.syntax == "object" and not _within_text(text[:end]):
            return [], end
    if final:
        return [], len(text)
    if not form.close and not _may_be_object(text, form):
        return [], len(text)
    return None


def _ends(text: str, form: ToolFormat, *, final: bool) -> Iterator[int]:
    """Where the block may end: after each text that closes one, or where all ends."""
    if form.close:
        start = len(form.open)
        while (place := text.find(form.close, start)) >= 0:
            start = place + len(form.close)
            yield start
    if final:
        yield len(text)


def _may_be_object(text: str, form: ToolFormat) -> bool:
    """Whether unmarked text may yet turn out to be a call."""
    begun = text.removeprefix(form.open).removeprefix("<|python_tag|>").lstrip()
    if form.syntax == "object" and not form.open:
        return not begun or re.match(r"[\[{]\s*(?:[\[{\"]|$)", begun) is not None
    return True


def _inner(block: str, form: ToolFormat) -> str:
    inner = block.strip().removeprefix(form.open).removeprefix("<|python_tag|>")
    return (inner.removesuffix(form.close) if form.close else inner).strip()


def _within_text(block: str) -> bool:
    """Whether the block ends inside a JSON string, so that what closed it may belong to that."""
    quotes = re.findall(r'\\.|"', block, flags=re.DOTALL)
    return quotes.count('"') % 2 == 1


def _parsed(inner: str, form: ToolFormat, tools: Mapping[str, Any]) -> list[Found]:
    """The calls that a block holds; none where anything in it is not one."""
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
            calls = [Found(call.name, _text_of(call, tools.get(call.name))) for call in read(inner, form)]
        except (ValueError, RecursionError, SyntaxError, TypeError, MemoryError):
            continue
        if calls and all(call.name in tools for call in calls):
            return calls
    return []


class _Bare(str):
    """An argument written as bare text: what it means depends on the tool's schema."""

    __slots__ = ()


def _text_of(call: _Written, schema: Any) -> str:
    """The arguments as JSON.

    Raises:
        ValueError: there is a number that JSON has not.
    """
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    arguments = {
        key: _meant(value, properties.get(key)) if isinstance(value, _Bare) else value
        for key, value in call.arguments.items()
    }
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which only an escape can hold
        text = json.dumps(arguments, allow_nan=False)
    return text


def _meant(text: str, schema: Any) -> Any:
    """The value that a bare text means: a text where the schema takes one, or what it is as JSON."""
    kinds = _kinds(schema)
    if not kinds or kinds == {"string"}:
        return str(text)
    try:
        value = json.loads(text if text not in ("True", "False", "None") else _AS_JSON[text])
    except (ValueError, RecursionError):
        return str(text)
    return str(text) if "string" in kinds and not isinstance(value, list | dict) and value is not None else value


_AS_JSON = {"True": "true", "False": "false", "None": "null"}


def _kinds(schema: Any) -> set[str]:
    """The types that a schema names."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type", ())
    kinds = {named} if isinstance(named, str) else {kind for kind in named if isinstance(kind, str)}
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        kinds |= _kinds(inner)
    return kinds


def _objects(inner: str, form: ToolFormat) -> Iterator[_Written]:
    """{"name": …, "arguments": …}: one, a list, or several with commas, semicolons or markers between them."""
    rest = inner
    while rest:
        value, end = json.JSONDecoder(parse_constant=_no_constant).raw_decode(rest)
        for call in value if isinstance(value, list) else [value]:
            yield _object(call)
        rest = rest[end:].lstrip(" \t\r\n;,")
        for marker in (form.close, form.open):
            rest = rest.removeprefix(marker).lstrip() if marker else rest


def _object(value: Any) -> _Written:
    if not isinstance(value, dict):
        raise TypeError("a call is an object")
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name = value.get("name", value.get("tool_name", value.get("function")))
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    if isinstance(arguments, str):
        arguments = json.loads(arguments, parse_constant=_no_constant)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("a call has a name and an object of arguments")
    return _Written(name, arguments)


def _inline(inner: str, form: ToolFormat) -> Iterator[_Written]:
    """A name, what stands between, and JSON."""
    lead = form.begin.removeprefix(form.open).strip()
    rest = inner
    while rest:
        found = re.match(r"\s*([^\s{\[<(]+)", rest.removeprefix(lead) if lead else rest)
        opened = rest.find("{")
        if found is None or opened < 0:
            raise ValueError("no call")
        arguments, end = json.JSONDecoder(parse_constant=_no_constant).raw_decode(rest[opened:])
        if not isinstance(arguments, dict):
            raise TypeError("arguments are an object")
        yield _Written(found[1], arguments)
        tail = rest[opened + end :]
        again = _loosely(form.between).match(tail) if form.between else None
        rest = lead + tail[again.end() :] if again else ""


def _loosely(text: str) -> re.Pattern[str]:
    """A pattern for `text` with any white space in it."""
    return re.compile(r"\s*" + r"\s*".join(re.escape(letter) for letter in "".join(text.split())))


def _xml(inner: str, form: ToolFormat) -> Iterator[_Written]:
    """<function=name><parameter=key>value</parameter></function>."""
    functions = list(re.finditer(r"<function=([^>\n]+)>(.*?)</function>", inner, flags=re.DOTALL))
    for function in functions:
        pairs = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", function[2], flags=re.DOTALL)
        yield _Written(function[1].strip(), {key.strip(): _Bare(value) for key, value in pairs})


def _keys(inner: str, form: ToolFormat) -> Iterator[_Written]:
    """name<arg_key>key</arg_key><arg_value>value</arg_value>."""
    name = re.match(r"\s*([^\s<]+)", inner)
    if name is None or inner.startswith("{"):
        raise ValueError("no name")
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", inner, flags=re.DOTALL)
    yield _Written(name[1], {key.strip(): _Bare(value) for key, value in pairs})


def _call_of_keys(inner: str, form: ToolFormat) -> Iterator[_Written]:
    """call:name{key:value}, where texts stand between marks of their own: <|"|>, <escape>, or quotes."""
    found = re.fullmatch(r"call:([^\s{]+)\s*(\{.*\})", inner, flags=re.DOTALL)
    if found is None:
        raise ValueError("no call")
    texts: list[str] = []

    def keep(match: re.Match[str]) -> str:
        texts.append(json.dumps(match[1] if match[1] is not None else match[2]) if match[3] is None else match[3])
        return f"\0{len(texts) - 1}\0"

    if "\0" in found[2]:
        raise ValueError("no call")
    marked = re.sub(r'<\|"\|>(.*?)<\|"\|>|<escape>(.*?)<escape>|("(?:\\.|[^"\\])*")', keep, found[2], flags=re.DOTALL)
    quoted = re.sub(r"(?<=[{,])\s*([\w-]+)\s*:", r'"\1":', marked)
    arguments = json.loads(
        re.sub(r"\0(\d+)\0", lambda match: texts[int(match[1])], quoted), parse_constant=_no_constant
    )
    yield _Written(found[1], arguments)


def _python(inner: str, form: ToolFormat) -> Iterator[_Written]:
    """[name(key="value")]: read as Python's literals, never run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of escapes that a model made up
        tree = ast.parse(inner, mode="eval").body
    for call in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("a call has named arguments")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
        json.dumps(arguments, allow_nan=False)
        yield _Written(ast.unparse(call.func), arguments)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
