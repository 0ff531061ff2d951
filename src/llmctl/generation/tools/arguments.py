"""The syntaxes in which models write the arguments of a call: JSON, tagged values, Python, and Gemma's objects.

Each syntax scans the arguments of an arriving call, writes the arguments of an earlier call, and writes the grammar of
a constrained call.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmctl.generation.marks import TYPE
from llmctl.generation.structured.lark import LarkWriter
from llmctl.generation.tools.literals import python_keywords
from llmctl.generation.tools.scan import IncompleteError, NotACallError, json_value, matches, skip, skip_any
from llmctl.generation.tools.schema import Bare, Parameter, allowed_types, parameters_of


class ArgumentSyntax(Protocol):
    """A syntax of arguments."""

    @property
    def marks(self) -> Sequence[str]:
        """Fixed parts of the syntax, whose special tokens must not be removed from the answer."""

    def scan(self, text: str, at: int, following: Sequence[str], *, final: bool) -> tuple[Mapping[str, Any], int]:
        """Return the arguments that begin at `at`, and the position after them.

        Args:
            following: The fixed parts that may follow the arguments.
            final: True if the text is complete.

        Raises:
            IncompleteError: more text is needed.
            ValueError: the text has no arguments there.
        """

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Add the rules for the arguments of a tool, with names that begin with `name`. Return their symbols.

        Args:
            schema: The tool's parameter schema.
            is_enforced: True if the arguments must match the schema; otherwise they need only be well-formed.
        """


@dataclass(frozen=True)
class JsonArguments:
    """Arguments as a JSON object."""

    @property
    def marks(self) -> Sequence[str]:
        """There are no fixed parts."""
        return ()

    def scan(self, text: str, at: int, following: Sequence[str], *, final: bool) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position after them. A JSON text that contains the object counts."""
        value, end = json_value(text, at)
        if isinstance(value, str):
            value, _ = json_value(value, 0)
        if not isinstance(value, dict):
            raise NotACallError("arguments are an object")
        return value, end

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return json.dumps(arguments, ensure_ascii=False)

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbol for the arguments."""
        return f"%json {json.dumps(schema if is_enforced else {'type': 'object'}, ensure_ascii=False)}"


@dataclass(frozen=True)
class TaggedArguments:
    """Arguments as tagged values: <parameter=city>Rome</parameter>.

    Attributes:
        key_open: The part before a key.
        key_close: The part between a key and its value. `TYPE` in it stands for the type of the value.
        value_close: The part after a value.
        string_type: The text for `TYPE` if the value is a string.
        other_type: The text for `TYPE` if it is not; None for the name of its JSON type.
        has_cdata: True if values may be within <![CDATA[…]]>.
    """

    key_open: str
    key_close: str
    value_close: str
    string_type: str = "true"
    other_type: str | None = "false"
    has_cdata: bool = False

    @property
    def marks(self) -> Sequence[str]:
        """The parts around keys and values."""
        return (self.key_open, self.key_close, self.value_close)

    def scan(self, text: str, at: int, following: Sequence[str], *, final: bool) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position after them."""
        arguments: dict[str, Any] = {}
        while not (final and not text[at:].strip()) and matches(text, at, self.key_open):
            start = skip(text, at, self.key_open)
            key = re.compile(r"[^<>\"\n=]*").match(text, start)
            assert key is not None  # noqa: S101 (it may be empty)
            value_at = skip(text, key.end(), self.key_close)
            end, at = self._value_end(text, value_at, following, final=final)
            arguments[key[0].strip()] = self._value(text[value_at:end], text[key.end() : value_at])
        return arguments, at

    def _value_end(self, text: str, at: int, following: Sequence[str], *, final: bool) -> tuple[int, int]:
        """Return the end of the value at `at`, and the position after its closing part.

        A value may contain the text of the closing part. It ends where the next parameter or the end of the call
        follows.
        """
        mark = self.value_close.strip()
        position = text.find(mark, at)
        while position >= 0:
            after = position + len(mark)
            try:
                skip_any(text, after, (self.key_open, *following))
            except NotACallError:
                position = text.find(mark, after)
                continue
            except IncompleteError:
                if not final:
                    raise
            return position, after
        raise IncompleteError

    def _value(self, text: str, head: str) -> Any:
        """Return the value between its parts; bare text if nothing shows its type."""
        is_wrapped = text.startswith("\n") and text.endswith("\n")  # a model may put a short value on its own line
        if is_wrapped or self.key_close.endswith("\n"):
            text = text.removeprefix("\n")
        if is_wrapped or self.value_close.startswith("\n"):
            text = text.removesuffix("\n")
        if self.has_cdata and text.startswith("<![CDATA[") and text.endswith("]]>"):
            return text[len("<![CDATA[") : -len("]]>")]
        if TYPE not in self.key_close:
            return Bare(text)
        if f'"{self.string_type}"' in head:
            return text
        return json_value(text, 0)[0]

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return "".join(
            self.key_open
            + key
            + self.key_close.replace(TYPE, self._type_of(value))
            + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            + self.value_close
            for key, value in arguments.items()
        )

    def _type_of(self, value: Any) -> str:
        """Return the text for the type of a value."""
        if isinstance(value, str) or self.other_type is not None:
            return self.string_type if isinstance(value, str) else str(self.other_type)
        names = {bool: "boolean", int: "number", float: "number", list: "array", type(None): "null"}
        return names.get(type(value), "object")

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbols for the arguments: the parameters in the order of the schema."""
        parameters = parameters_of(schema)
        symbols = []
        for number, parameter in enumerate(parameters):
            symbol = f"{name}_{number}"
            is_text = parameter.is_text
            type_name = self.string_type if is_text else self.other_type or TYPE
            head = self.key_open + parameter.name + self.key_close.replace(TYPE, type_name)
            lark.add(f"{symbol}: {lark.literal(head)} {self._value_rule(lark, symbol, parameter, schema)}")
            symbols.append(symbol if parameter.is_required and is_enforced else f"{symbol}?")
        if not parameters and schema.get("additionalProperties") is not False:
            close = self.key_close.replace(TYPE, self.string_type)
            lark.add_until(f"{name}_any_value", self.value_close)
            lark.add(
                f"{name}_any: {lark.literal(self.key_open)} /[a-zA-Z0-9_-]+/ {lark.literal(close)} {name}_any_value"
            )
            symbols.append(f"{name}_any*")
        return " ".join(symbols)

    def _value_rule(self, lark: LarkWriter, name: str, parameter: Parameter, root: Mapping[str, Any]) -> str:
        """Return the symbols for a value and its closing part."""
        close = lark.literal(self.value_close)
        if parameter.choices is not None:
            return f"({' | '.join(lark.literal(choice) for choice in parameter.choices)}) {close}"
        if parameter.is_text:
            lark.add_until(f"{name}_value", self.value_close)
            return f"{name}_value"
        return f"%json {_with_definitions(parameter.schema, root)} {close}"


@dataclass(frozen=True)
class PythonArguments:
    """Arguments as keywords of a call in Python: city="Rome", days=3."""

    @property
    def marks(self) -> Sequence[str]:
        """There are no fixed parts."""
        return ()

    def scan(self, text: str, at: int, following: Sequence[str], *, final: bool) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position of the closing parenthesis."""
        end = _closing(text, at, ")")
        return python_keywords(text[at:end]), end

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return ", ".join(f"{key}={value!r}" for key, value in arguments.items())

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbols for the arguments."""
        symbols = []
        for number, parameter in enumerate(parameters_of(schema)):
            symbol = f"{name}_{number}"
            lark.add(f"{symbol}: {lark.literal(parameter.name + '=')} {self._value_rule(parameter, schema)}")
            symbols.append((symbol, parameter.is_required and is_enforced))
        return _separated(lark, name, symbols, lark.literal(", "))

    def _value_rule(self, parameter: Parameter, root: Mapping[str, Any]) -> str:
        if allowed_types(parameter.schema) == {"boolean"}:
            return '("True" | "False")'
        return f"%json {_with_definitions(parameter.schema, root)}"


@dataclass(frozen=True)
class GemmaArguments:
    """Arguments as an object with bare keys and marked strings: city:<|"|>Rome<|"|>,days:3."""

    quote: str = '<|"|>'

    @property
    def marks(self) -> Sequence[str]:
        """The mark around strings."""
        return (self.quote,)

    def scan(self, text: str, at: int, following: Sequence[str], *, final: bool) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position of the closing brace."""
        strings: list[str] = []

        def keep(match: re.Match[str]) -> str:
            strings.append(match[3] if match[3] is not None else json.dumps(match[1] if match[2] is None else match[2]))
            return f"\0{len(strings) - 1}\0"

        quote = re.escape(self.quote)
        literal = rf'{quote}(.*?){quote}|<escape>(.*?)<escape>|("(?:\\.|[^"\\])*")'
        end = _closing(text, at, "}", strings=re.compile(literal, flags=re.DOTALL), quotes=(self.quote, "<escape>"))
        if "\0" in text[at:end]:
            raise NotACallError
        marked = re.sub(literal, keep, text[at:end], flags=re.DOTALL)
        keyed = re.sub(r"(^|[{,])\s*([\w.-]+)\s*:", r'\1"\2":', marked)
        named = re.sub(r"\b(None|True|False)\b", lambda m: {"None": "null"}.get(m[1], m[1].lower()), keyed)
        inner = re.sub(r"\0(\d+)\0", lambda match: strings[int(match[1])], named)
        value, length = json_value("{" + inner + "}", 0)
        if length != len(inner) + 2:
            raise NotACallError
        return dict(value), end

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return ",".join(f"{key}:{self._written(value)}" for key, value in arguments.items())

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self.quote}{value}{self.quote}"
        if isinstance(value, Mapping):
            return "{" + self.write(value) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._written, value)) + "]"
        return json.dumps(value)

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbols for the arguments."""
        self._add_any(lark)
        return self._object_rule(lark, name, schema, schema, is_enforced=is_enforced)

    def _add_any(self, lark: LarkWriter) -> None:
        """Add the rules for any value."""
        if lark.has("gemma_value"):
            return
        quote = lark.literal(self.quote)
        lark.add_until("gemma_text", self.quote)
        lark.add(f"gemma_string: {quote} gemma_text")
        lark.add(
            'gemma_value: gemma_string | %json {"type": ["number", "boolean", "null"]} | gemma_list | gemma_object'
        )
        lark.add('gemma_list: "[" (gemma_value ("," gemma_value)*)? "]"')
        lark.add('gemma_object: "{" (gemma_pair ("," gemma_pair)*)? "}"')
        lark.add('gemma_pair: /[a-zA-Z0-9_-]+/ ":" gemma_value')

    def _object_rule(
        self, lark: LarkWriter, name: str, schema: Mapping[str, Any], root: Mapping[str, Any], *, is_enforced: bool
    ) -> str:
        parameters = parameters_of(
            {**schema, "$defs": root.get("$defs", {}), "definitions": root.get("definitions", {})}
        )
        if not parameters:
            return '(gemma_pair ("," gemma_pair)*)?' if schema.get("additionalProperties") is not False else ""
        symbols = []
        for number, parameter in enumerate(parameters):
            symbol = f"{name}_{number}"
            value = self._value_rule(lark, symbol, parameter, root)
            lark.add(f"{symbol}: {lark.literal(parameter.name + ':')} {value}")
            symbols.append((symbol, parameter.is_required and is_enforced))
        return _separated(lark, name, symbols, '","')

    def _value_rule(self, lark: LarkWriter, name: str, parameter: Parameter, root: Mapping[str, Any]) -> str:
        quote, types = lark.literal(self.quote), allowed_types(parameter.schema)
        if parameter.choices is not None:
            return f"{quote} ({' | '.join(map(lark.literal, parameter.choices))}) {quote}"
        if types == {"string"}:
            return "gemma_string"
        if types == {"object"}:
            return f'"{{" {self._object_rule(lark, name, parameter.schema, root, is_enforced=True)} "}}"'
        if types == {"array"}:
            items = Parameter("", parameter.schema.get("items") or {}, is_required=True)
            lark.add(f"{name}_item: {self._value_rule(lark, f'{name}_item', items, root)}")
            return f'"[" ({name}_item ("," {name}_item)*)? "]"'
        if types and types <= {"number", "integer", "boolean", "null", "other"}:
            return f"%json {_with_definitions(parameter.schema, root)}"
        return "gemma_value"


def _closing(
    text: str, at: int, bracket: str, *, strings: re.Pattern[str] | None = None, quotes: Sequence[str] = ()
) -> int:
    """Return the position of the bracket that closes the one before `at`, outside of strings.

    Args:
        strings: A pattern for complete strings; by default those of Python.
        quotes: The marks that begin strings; by default quotation marks.

    Raises:
        IncompleteError: it has not arrived.
        NotACallError: another bracket is closed first.
    """
    pattern = strings or re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", flags=re.DOTALL)
    quotes = (*quotes, '"') if quotes else ("'", '"')
    pairs = {"(": ")", "[": "]", "{": "}"}
    waiting = [bracket]
    while at < len(text):
        if any(text.startswith(quote, at) for quote in quotes):
            string = pattern.match(text, at)
            if string is None:
                raise IncompleteError
            at = string.end()
            continue
        if text[at] in pairs:
            waiting.append(pairs[text[at]])
        elif text[at] in ")]}":
            if text[at] != waiting.pop():
                raise NotACallError
            if not waiting:
                return at
        at += 1
    raise IncompleteError


def _separated(lark: LarkWriter, name: str, symbols: Sequence[tuple[str, bool]], separator: str) -> str:
    """Return a symbol for a list in order, some of whose items are required, with separators between those present."""
    if not symbols:
        return ""
    for number, (symbol, is_required) in enumerate(symbols):
        is_last = number + 1 == len(symbols)
        tail = "" if is_last else f" {name}_after{number + 1}"
        following = f"{separator} {symbol}" if is_required else f"({separator} {symbol})?"
        lark.add(f"{name}_after{number}: {following}{tail}")
        first = f"{symbol}{tail}"
        if not is_required:
            first = f"{symbol}?" if is_last else f"{first} | {name}_from{number + 1}"
        lark.add(f"{name}_from{number}: {first}")
    return f"{name}_from0"


def _with_definitions(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return a schema as JSON, with the definitions that it may refer to."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return json.dumps({**shared, **schema}, ensure_ascii=False)
