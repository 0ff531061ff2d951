"""Arguments as nested elements, each behind a control token: MiniMax M3."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmctl.generation.structured.lark import LarkWriter
from llmctl.generation.tools.scan import IncompleteError, NotACallError
from llmctl.generation.tools.schema import (
    ANY_NAME,
    additional_of,
    alternatives_of,
    convert,
    is_any_text,
    parameters_of,
    properties_of,
    schema_key,
)

_Schema = Mapping[str, Any]
_ITEM = "item"  # the key of the elements of a list
_MAX_DEPTH = 64


@dataclass(frozen=True)
class ElementArguments:
    """Arguments as elements: <city>Rome</city>, with `mark` before each tag.

    Attributes:
        mark: The control token before each tag.
    """

    mark: str

    @property
    def marks(self) -> Sequence[str]:
        """The control token."""
        return (self.mark,)

    @property
    def json_values(self) -> Literal["scalars"]:
        """Strings, lists and objects are written otherwise."""
        return "scalars"

    def scan(
        self, text: str, at: int, *, following: Sequence[str], schema: Mapping[str, Any], final: bool
    ) -> tuple[Mapping[str, Any], int]:
        """Return the arguments that begin at `at`, and the position after them."""
        pairs, at = _Reader(text, self.mark, schema).elements(at, [{**schema, "type": "object"}])
        return dict(pairs), at

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return "".join(
            f"{self.mark}<{key}>{self._written(value)}{self.mark}</{key}>" for key, value in arguments.items()
        )

    def _written(self, value: Any) -> str:
        if isinstance(value, Mapping):
            return self.write(value)
        if isinstance(value, list):
            return "".join(self.write({_ITEM: one}) for one in value)
        return value if isinstance(value, str) else json.dumps(value)

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbols for the arguments, in the order of the schema."""
        return self._object_rule(lark, name, schema if is_enforced else {}, schema)

    def _object_rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        symbols = []
        for number, parameter in enumerate(parameters_of(schema, root)):
            symbol = f"{name}_{number}"
            self._add_element(lark, symbol, lark.literal(parameter.name), parameter.schema, root)
            symbols.append(symbol if parameter.is_required else f"{symbol}?")
        further = additional_of(schema)
        if not symbols and further is not None:
            self._add_element(lark, f"{name}_any", ANY_NAME, further, root)
            symbols.append(f"{name}_any*")
        return " ".join(symbols)

    def _add_element(self, lark: LarkWriter, name: str, key: str, schema: Any, root: Mapping[str, Any]) -> None:
        """Add the rule of an element. The value's rule has the closing mark."""
        alternatives = alternatives_of(schema, root)

        def options() -> str:
            return " | ".join(
                self._value_rule(lark, f"{name}_{number}x", one, root) for number, one in enumerate(alternatives)
            )

        value = lark.shared(f"{name}_value", schema_key(schema, root), options)
        lark.add(f'{name}: {lark.literal(self.mark)} "<" {key} ">" {value} "</" {key} ">"')

    def _value_rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        """Return the symbols for a value and the mark after it."""
        mark, kind = lark.literal(self.mark), schema.get("type")
        if is_any_text(schema):
            text = lark.until(self.mark)
            if not lark.has("element_any"):
                lark.add(f'element_any: {mark} "<" {ANY_NAME} ">" element_value "</" {ANY_NAME} ">"')
                lark.add(f"element_value: {text} | element_any+ {mark}")
            return text if kind == "string" else "element_value"
        if kind == "string":
            return f"({' | '.join(map(lark.literal, schema['enum']))}) {mark}"
        if kind == "object":
            return f"{self._object_rule(lark, name, schema, root)} {mark}"
        if kind == "array":
            self._add_element(lark, f"{name}_item", lark.literal(_ITEM), schema.get("items", {}), root)
            return f"{name}_item* {mark}"
        return f"{lark.json(schema, root)} {mark}"


class _Reader:
    """Reads elements of a text that may still grow.

    Args:
        root: The schema to which references refer.
    """

    def __init__(self, text: str, mark: str, root: Mapping[str, Any]) -> None:
        self._text, self._mark, self._root = text, mark, root

    def elements(self, at: int, known: Sequence[_Schema], depth: int = 0) -> tuple[list[tuple[str, Any]], int]:
        """Return the keys and values of the elements at `at`, and the position after them.

        Args:
            known: The alternatives of the value that they make up.
        """
        text, opening = self._text, f"{self._mark}<"
        if depth > _MAX_DEPTH:
            raise NotACallError("nested too deep")
        pairs: list[tuple[str, Any]] = []
        while True:
            if opening.startswith(text[at : at + len(opening)]) and len(text) <= at + len(opening):
                raise IncompleteError
            if not text.startswith(opening, at) or text.startswith("/", at + len(opening)):
                return pairs, at
            key = self._key(at + len(opening), known)
            value, at = self._value(at + len(opening) + len(key) + 1, key, self._known(key, known), depth + 1)
            pairs.append((key, value))

    def _key(self, at: int, known: Sequence[_Schema]) -> str:
        """Return the name in the opening tag whose name begins at `at`."""
        names = {name for one in known for name in properties_of(one)}
        listed = max((name for name in names if self._text.startswith(f"{name}>", at)), key=len, default=None)
        end = self._text.find(">", at)
        if end < 0 or (listed is None and any(name.startswith(self._text[at:]) for name in names)):
            raise IncompleteError
        key = self._text[at:end] if listed is None else listed
        if not key or "\n" in key:
            raise NotACallError
        return key

    def _known(self, key: str, known: Sequence[_Schema]) -> Sequence[Mapping[str, Any]]:
        """Return the alternatives of the value of an element, given those of the value around it."""
        for one in known:
            if one.get("type") == "array" and key == _ITEM:
                return alternatives_of(one.get("items", {}), self._root)
            if key in properties_of(one):
                return alternatives_of(properties_of(one)[key], self._root)
            if one.get("type") == "object" and (further := additional_of(one)) is not None:
                return alternatives_of(further, self._root)
        return [{}]

    def _value(self, at: int, key: str, known: Sequence[_Schema], depth: int) -> tuple[Any, int]:
        """Return the value of a key at `at`, and the position after its closing tag.

        Without a schema, a closing tag may have any name, since a grammar cannot enforce that it has the right one.
        """
        text, is_any = self._text, {} in known
        close = f"{self._mark}</" + ("" if is_any else f"{key}>")
        has_elements = is_any or any(one.get("type") in ("array", "object") for one in known)
        pairs, end = self.elements(at, known, depth) if has_elements else ([], at)
        if not pairs:
            end = text.find(close, at)
        elif not text.startswith(close, end) and not close.startswith(text[end : end + len(close)]):
            raise NotACallError
        after = text.find(">", end + len(close) - (not is_any)) if end >= 0 else -1
        if after < 0:
            raise IncompleteError
        if not pairs:
            return convert(text[at:end], known), after + 1
        is_object = any(one.get("type") == "object" for one in known)
        is_list = all(key == _ITEM for key, _ in pairs) and not is_object
        return [value for _, value in pairs] if is_list else dict(pairs), after + 1
