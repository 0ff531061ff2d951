"""The syntaxes in which models write the arguments of a call: JSON and tagged values.

`literal_arguments` and `elements` have the others.

Each syntax scans the arguments of an arriving call, writes the arguments of an earlier call, and writes the grammar of
a constrained call.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llmctl.generation.marks import TYPE
from llmctl.generation.structured.lark import LarkWriter
from llmctl.generation.tools.scan import IncompleteError, NotACallError, json_value, matches, skip, skip_any
from llmctl.generation.tools.schema import (
    ANY_NAME,
    Parameter,
    additional_of,
    alternatives_of,
    convert,
    is_any_text,
    parameters_of,
    properties_of,
)

_KEY = re.compile(r"[^<>\"\n=]*")  # a key that the tool does not have
_CDATA = ("<![CDATA[", "]]>")
_OTHER_TYPES = ("boolean", "number", "null", "array", "object")


class ArgumentSyntax(Protocol):
    """A syntax of arguments."""

    @property
    def marks(self) -> Sequence[str]:
        """Fixed parts of the syntax, whose special tokens must not be removed from the answer."""

    @property
    def json_values(self) -> Literal["all", "values", "others", "scalars"]:
        """The values that are JSON, so that their schemas are enforced exactly.

        They are `all`, with the object of arguments; all `values` in it; all `others` than its strings; or `scalars`.
        """

    def scan(
        self, text: str, at: int, *, following: Sequence[str], schema: Mapping[str, Any], final: bool
    ) -> tuple[Mapping[str, Any], int]:
        """Return the arguments that begin at `at`, and the position after them.

        Args:
            following: The fixed parts that may follow the arguments.
            schema: The tool's parameter schema, which may be malformed.
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

    @property
    def json_values(self) -> Literal["all"]:
        """Everything is JSON."""
        return "all"

    def scan(
        self, text: str, at: int, *, following: Sequence[str], schema: Mapping[str, Any], final: bool
    ) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position after them. A JSON text that contains the object counts."""
        value, end = json_value(text, at)
        if isinstance(value, str):
            value = json.loads(value)
        if not isinstance(value, dict):
            raise NotACallError("arguments are an object")
        return value, end

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return json.dumps(arguments, ensure_ascii=False)

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbol for the arguments."""
        return lark.json(schema if is_enforced else {"type": "object"}, schema)


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

    @property
    def json_values(self) -> Literal["others"]:
        """Strings are written as they are."""
        return "others"

    def scan(
        self, text: str, at: int, *, following: Sequence[str], schema: Mapping[str, Any], final: bool
    ) -> tuple[Mapping[str, Any], int]:
        """Return the arguments at `at`, and the position after them."""
        arguments: dict[str, Any] = {}
        properties, further = properties_of(schema), additional_of(schema)
        keys = sorted(properties, key=len, reverse=True)
        while not (final and not text[at:].strip()) and matches(text, at, self.key_open):
            key, value_at = self._head(text, at, keys)
            end, after = self._value_end(text, value_at, following, keys, final=final)
            value = self._bare(text[value_at:end])
            known = alternatives_of(properties.get(key, further), schema)
            arguments[key] = self._typed(value, text[at:value_at], known)
            at = after
        return arguments, at

    def _head(self, text: str, at: int, keys: Sequence[str]) -> tuple[str, int]:
        """Return the key that begins at `at`, and the position of its value."""
        start, is_incomplete = skip(text, at, self.key_open), False
        for key in (*keys, _KEY.match(text, start)[0].strip()):  # type: ignore[index]
            if not text.startswith(key, start):
                is_incomplete = is_incomplete or key.startswith(text[start : start + len(key)])
                continue
            try:
                return key, skip(text, start + len(key), self.key_close)
            except IncompleteError:
                is_incomplete = True
            except NotACallError:
                continue
        raise IncompleteError if is_incomplete else NotACallError

    def _value_end(
        self, text: str, at: int, following: Sequence[str], keys: Sequence[str], *, final: bool
    ) -> tuple[int, int]:
        """Return the end of the value at `at`, and the position after its closing part.

        A value may contain the text of the closing part. It ends where the next parameter or the end of the call
        follows.
        """
        mark = self.value_close.strip()
        if self.has_cdata and text.startswith(_CDATA[0], at) and (close := text.find(_CDATA[1], at)) >= 0:
            at = close
        position = text.find(mark, at)
        while position >= 0:
            after = position + len(mark)
            try:
                self._check_followed(text, after, following, keys)
            except NotACallError:
                position = text.find(mark, after)
                continue
            except IncompleteError:
                if not final:
                    raise
            return position, after
        raise IncompleteError

    def _check_followed(self, text: str, at: int, following: Sequence[str], keys: Sequence[str]) -> None:
        """Raise NotACallError unless a parameter or the end of the call is at `at`."""
        try:
            self._head(text, at, keys)
        except NotACallError:
            skip_any(text, at, following)

    def _bare(self, text: str) -> str:
        """Return the text of a value without what belongs to the format."""
        is_wrapped = text.startswith("\n") and text.endswith("\n")  # a model may put a short value on its own line
        if is_wrapped or self.key_close.endswith("\n"):
            text = text.removeprefix("\n")
        if is_wrapped or self.value_close.startswith("\n"):
            text = text.removesuffix("\n")
        if self.has_cdata and text.startswith(_CDATA[0]) and text.endswith(_CDATA[1]):
            return text[len(_CDATA[0]) : -len(_CDATA[1])]
        return text

    def _typed(self, text: str, head: str, known: Sequence[Mapping[str, Any]]) -> Any:
        """Return the value of a text. The part before it or the schema shows its type."""
        if TYPE not in self.key_close:
            return convert(text, known)
        return text if f'"{self.string_type}"' in head else json_value(text, 0)[0]

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return "".join(
            self.key_open
            + key
            + self.key_close.replace(TYPE, self._type_of(value))
            + self._written(value)
            + self.value_close
            for key, value in arguments.items()
        )

    def _written(self, value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return f"{_CDATA[0]}{text}{_CDATA[1]}" if self.has_cdata and re.search(r"[<&\n]", text) else text

    def _type_of(self, value: Any) -> str:
        """Return the text for the type of a value."""
        if isinstance(value, str) or self.other_type is not None:
            return self.string_type if isinstance(value, str) else str(self.other_type)
        names = {bool: "boolean", int: "number", float: "number", list: "array", type(None): "null"}
        return names.get(type(value), "object")

    def rule(self, lark: LarkWriter, name: str, schema: Mapping[str, Any], *, is_enforced: bool) -> str:
        """Return the symbols for the arguments: the parameters in the order of the schema."""
        parameters = parameters_of(schema, schema) if is_enforced else []
        symbols = []
        for number, parameter in enumerate(parameters):
            symbol = f"{name}_{number}"
            pairs = [
                f"{lark.literal(self.key_open + parameter.name + head)} {value}"
                for head, value in self._values(lark, parameter, schema)
            ]
            lark.add(f"{symbol}: {' | '.join(pairs)}")
            symbols.append(symbol if parameter.is_required else f"{symbol}?")
        further = additional_of(schema) if is_enforced else {}
        if not parameters and further is not None:
            any_one = Parameter("", further, alternatives_of(further, schema), is_required=False)
            pairs = [
                f"{lark.literal(self.key_open)} {ANY_NAME} {lark.literal(head)} {value}"
                for head, value in self._values(lark, any_one, schema)
            ]
            lark.add(f"{name}_any: {' | '.join(pairs)}")
            symbols.append(f"{name}_any*")
        return " ".join(symbols)

    def _values(self, lark: LarkWriter, parameter: Parameter, root: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the ways to write a value: the part before it, and the symbols for it and its closing part."""
        close, head = lark.literal(self.value_close), self.key_close
        texts = [text for one in parameter.alternatives if one.get("type") == "string" for text in one.get("enum", ())]
        others = [one for one in parameter.alternatives if one.get("type", "") != "string" and not is_any_text(one)]
        if parameter.is_text:
            yield head.replace(TYPE, self.string_type), lark.until(self.value_close)
        elif texts:
            texts += [self._written(text) for text in texts if self._written(text) != text]
            yield head.replace(TYPE, self.string_type), f"({' | '.join(map(lark.literal, texts))}) {close}"
        if {} in parameter.alternatives:
            others = [{"type": list(_OTHER_TYPES)}]
        if others and (not parameter.is_text or TYPE in self.key_close):
            schema = {"anyOf": others} if parameter.is_text or texts else parameter.schema
            for kind in dict.fromkeys(kind for one in others for kind in self._other_types(one)):
                yield head.replace(TYPE, kind), f"{lark.json(schema, root)} {close}"

    def _other_types(self, alternative: Mapping[str, Any]) -> Iterator[str]:
        """Yield the texts for the types of values that are not strings."""
        if "enum" in alternative:
            yield from map(self._type_of, alternative["enum"])
            return
        kinds = alternative["type"] if isinstance(alternative["type"], list) else [alternative["type"]]
        for kind in kinds:
            yield self.other_type or ("number" if kind == "integer" else str(kind))
