"""Arguments as pairs with literals: Python's keywords, and Gemma's objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmctl.generation.structured.lark import LarkWriter
from llmctl.generation.tools.literals import LiteralReader
from llmctl.generation.tools.schema import (
    ANY_NAME,
    additional_of,
    alternatives_of,
    is_any_text,
    parameters_of,
    properties_of,
    schema_key,
)

_CONSTANTS: Mapping[str, Sequence[Any]] = {"boolean": (True, False), "null": (None,)}


@dataclass(frozen=True)
class PythonArguments:
    """Arguments as keywords of a call in Python: city="Rome", days=3."""

    @property
    def marks(self) -> Sequence[str]:
        """There are no fixed parts."""
        return ()

    @property
    def json_values(self) -> Literal["values"]:
        """Every value is one in JSON, but for Python's constants."""
        return "values"

    def scan(
        self, text: str, at: int, *, following: Sequence[str], schema: Mapping[str, Any], final: bool
    ) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position of the closing parenthesis."""
        reader = LiteralReader(text, at)
        return reader.pairs("=", ")", keys=properties_of(schema)), reader.at

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return ", ".join(f"{key}={_python(value)}" for key, value in arguments.items())

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbols for the arguments."""
        parameters = parameters_of(schema, schema) if is_enforced else []
        symbols = []
        for number, parameter in enumerate(parameters):
            symbol = f"{name}_{number}"
            value = self._value_rule(lark, parameter.schema, parameter.alternatives, schema)
            lark.add(f"{symbol}: {lark.literal(parameter.name + '=')} {value}")
            symbols.append((symbol, parameter.is_required))
        further = additional_of(schema) if is_enforced else {}
        if not parameters and further is not None:
            value = self._value_rule(lark, further, alternatives_of(further, schema), schema)
            lark.add(f'{name}_any: {ANY_NAME} "=" {value}')
            return f'({name}_any (", " {name}_any)*)?'
        return _separated(lark, name, symbols, lark.literal(", "))

    def _value_rule(
        self, lark: LarkWriter, schema: Any, alternatives: Sequence[Mapping[str, Any]], root: Mapping[str, Any]
    ) -> str:
        constants, others = dict[str, None](), list[Mapping[str, Any]]()
        for one in alternatives:
            values = one.get("enum", _CONSTANTS.get(one.get("type", ""), ()))
            constants.update((f'"{value!r}"', None) for value in values if isinstance(value, bool | None))
            if rest := [value for value in one.get("enum", ()) if not isinstance(value, bool | None)]:
                others.append({**one, "enum": rest})
            elif not values:
                others.append(one)
        json_value = [lark.json({"anyOf": others} if constants else schema, root)] if others else []
        return f"({' | '.join([*constants, *json_value])})"


def _python(value: Any) -> str:
    """Return a value in Python's syntax, as far as that differs, with the strings of JSON."""
    return repr(value) if isinstance(value, bool | None) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class GemmaArguments:
    """Arguments as an object with bare keys and marked strings: city:<|"|>Rome<|"|>,days:3."""

    quote: str = '<|"|>'

    @property
    def marks(self) -> Sequence[str]:
        """The mark around strings."""
        return (self.quote,)

    @property
    def json_values(self) -> Literal["scalars"]:
        """Strings, lists and objects are written otherwise."""
        return "scalars"

    def scan(
        self, text: str, at: int, *, following: Sequence[str], schema: Mapping[str, Any], final: bool
    ) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position of the closing brace."""
        reader = LiteralReader(text, at, quotes=(self.quote, "<escape>"))
        return reader.pairs(":", "}", keys=properties_of(schema)), reader.at

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
        return self._object_rule(lark, name, schema if is_enforced else {}, schema)

    def _any_rule(self, lark: LarkWriter) -> str:
        """Return the symbol for any value."""
        if not lark.has("gemma_value"):
            lark.add(f"gemma_string: {lark.literal(self.quote)} {lark.until(self.quote)}")
            lark.add("gemma_value: gemma_string | gemma_scalar | gemma_list | gemma_object")
            lark.add(f"gemma_scalar: {lark.json({'type': ['number', 'boolean', 'null']}, {})}")
            lark.add('gemma_list: "[" (gemma_value ("," gemma_value)*)? "]"')
            lark.add('gemma_object: "{" (gemma_pair ("," gemma_pair)*)? "}"')
            lark.add(f'gemma_pair: {ANY_NAME} ":" gemma_value')
        return "gemma_value"

    def _object_rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        """Return the symbols for the inside of an object."""
        symbols = []
        for number, parameter in enumerate(parameters_of(schema, root)):
            symbol = f"{name}_{number}"
            value = self._value_rule(lark, symbol, parameter.schema, root)
            lark.add(f"{symbol}: {lark.literal(parameter.name + ':')} {value}")
            symbols.append((symbol, parameter.is_required))
        further = additional_of(schema)
        if not symbols and further is not None:
            lark.add(f'{name}_any: {ANY_NAME} ":" {self._value_rule(lark, f"{name}_any", further, root)}')
            return f'({name}_any ("," {name}_any)*)?'
        return _separated(lark, name, symbols, '","')

    def _value_rule(self, lark: LarkWriter, name: str, schema: Any, root: Mapping[str, Any]) -> str:
        """Return the symbol for a value. Equal schemas have one rule, so that they may refer to themselves."""
        alternatives = alternatives_of(schema, root)
        any_value = self._any_rule(lark)
        if any("type" not in one and "enum" not in one for one in alternatives):
            return any_value

        def options() -> str:
            return " | ".join(
                self._alternative_rule(lark, f"{name}_{number}x", one, root) for number, one in enumerate(alternatives)
            )

        return lark.shared(f"{name}_value", schema_key(schema, root), options)

    def _alternative_rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        quote, kind = lark.literal(self.quote), schema.get("type")
        if is_any_text(schema):
            return "gemma_string"
        if kind == "string":
            return f"{quote} ({' | '.join(map(lark.literal, schema['enum']))}) {quote}"
        if kind == "object":
            return f'"{{" {self._object_rule(lark, name, schema, root)} "}}"'
        if kind == "array":
            item = self._value_rule(lark, f"{name}_item", schema.get("items", {}), root)
            return f'"[" ({item} ("," {item})*)? "]"'
        return lark.json(schema, root)


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
