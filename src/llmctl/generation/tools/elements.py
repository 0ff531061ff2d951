"""Arguments as nested elements, each behind a control token: MiniMax M3."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.generation.structured.lark import LarkWriter
from llmctl.generation.tools.scan import IncompleteError, NotACallError
from llmctl.generation.tools.schema import Bare, Parameter, allowed_types, parameters_of

_ITEM = "item"  # the key of the elements of a list


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

    def scan(self, text: str, at: int, following: Sequence[str], *, final: bool) -> tuple[Mapping[str, Any], int]:
        """Return the arguments that begin at `at`, and the position after them."""
        pairs, at = self._elements(text, at)
        return dict(pairs), at

    def _elements(self, text: str, at: int) -> tuple[list[tuple[str, Any]], int]:
        pairs: list[tuple[str, Any]] = []
        while True:
            begun = text[at : at + len(self.mark) + 2]
            if len(begun) < len(self.mark) + 2:
                raise IncompleteError
            if not begun.startswith(f"{self.mark}<") or begun.endswith("/"):
                return pairs, at
            key_at = at + len(self.mark) + 1
            key_end = text.find(">", key_at)
            if key_end < 0:
                raise IncompleteError
            key = text[key_at:key_end]
            if not key.isidentifier():
                raise NotACallError
            value, at = self._value(text, key_end + 1, f"{self.mark}</{key}>")
            pairs.append((key, value))

    def _value(self, text: str, at: int, close: str) -> tuple[Any, int]:
        if text.startswith(f"{self.mark}<", at) and not text.startswith(close, at):
            pairs, at = self._elements(text, at)
            if not text.startswith(close, at):
                raise IncompleteError if close.startswith(text[at:]) else NotACallError
            is_list = all(key == _ITEM for key, _ in pairs)
            return [value for _, value in pairs] if is_list else dict(pairs), at + len(close)
        end = text.find(close, at)
        if end < 0:
            raise IncompleteError
        return Bare(text[at:end]), end + len(close)

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
        symbols = []
        for number, parameter in enumerate(parameters_of(schema)):
            symbol = f"{name}_{number}"
            self._add_element(lark, symbol, parameter)
            symbols.append(symbol if parameter.is_required and is_enforced else f"{symbol}?")
        return " ".join(symbols)

    def _add_element(self, lark: LarkWriter, name: str, parameter: Parameter) -> None:
        opened, closed = (lark.literal(f"{self.mark}<{part}{parameter.name}>") for part in ("", "/"))
        types, schema = allowed_types(parameter.schema), parameter.schema
        if parameter.choices is not None:
            value = f"({' | '.join(map(lark.literal, parameter.choices))})"
        elif types == {"object"}:
            value = self.rule(lark, name, schema, is_enforced=True)
        elif types == {"array"}:
            self._add_element(lark, f"{name}_item", Parameter(_ITEM, schema.get("items") or {}, is_required=True))
            value = f"{name}_item*"
        elif parameter.is_text:
            value = "TEXT"
        else:
            value = f"%json {json.dumps(schema, ensure_ascii=False)}"
        lark.add(f"{name}: {opened} {value} {closed}")
