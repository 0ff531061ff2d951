"""The parameter schemas of tools, as far as formats without JSON need them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_AS_JSON = {"True": "true", "False": "false", "None": "null"}
# keywords of a string's schema that a grammar of bare text does not enforce
_UNENFORCED = ("pattern", "format", "minLength", "maxLength")


class Bare(str):
    """An argument written as bare text. The tool's schema decides its type."""

    __slots__ = ()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool.

    Attributes:
        schema: Its schema, with local references resolved.
        is_required: True if every call has it.
    """

    name: str
    schema: Mapping[str, Any]
    is_required: bool

    @property
    def is_text(self) -> bool:
        """True if its value may be a string, which is then written without quotes."""
        return "string" in allowed_types(self.schema) or not allowed_types(self.schema)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The only texts that are allowed, or None."""
        values = [self.schema["const"]] if "const" in self.schema else self.schema.get("enum")
        if not values or not all(isinstance(value, str) for value in values):
            return None
        return tuple(values)


def parameters_of(schema: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters of a tool, in the order of its schema."""
    required = schema.get("required") or ()
    return [
        Parameter(name, resolve(value, schema), name in required)
        for name, value in (schema.get("properties") or {}).items()
    ]


def unenforced_keywords(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the places in a schema that only a JSON format can enforce."""
    for parameter in parameters_of(schema):
        if parameter.is_text and parameter.choices is None:
            for keyword in _UNENFORCED:
                if keyword in parameter.schema:
                    yield f"properties.{parameter.name}.{keyword}"


def resolve(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with its own reference replaced by what it refers to in `root`."""
    for _ in range(20):  # references may refer to references, or to each other
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        target: Any = root
        for key in reference[2:].split("/"):
            target = target.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        schema = target
    return schema if isinstance(schema, Mapping) else {}


def allowed_types(schema: Any) -> set[str]:
    """Return the types that a schema allows explicitly."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type", ())
    types = {named} if isinstance(named, str) else {name for name in named if isinstance(name, str)}
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        types |= allowed_types(inner)
    values = [schema["const"]] if "const" in schema else schema.get("enum") or ()
    if not types:
        types = {"string" if isinstance(value, str) else "other" for value in values}
    return types


def with_types(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with bare texts converted to the types in the tool's schema."""
    schemas = {parameter.name: parameter.schema for parameter in parameters_of(schema)}
    return {key: _typed(value, schemas.get(key), schema) for key, value in arguments.items()}


def _typed(value: Any, schema: Any, root: Mapping[str, Any]) -> Any:
    """Return a value in which bare texts have the types in its schema."""
    if isinstance(value, Bare):
        return _convert(value, schema)
    known = resolve(schema, root) if schema is not None else {}
    if isinstance(value, list):
        return [_typed(one, resolve(known.get("items", {}), root), root) for one in value]
    if isinstance(value, Mapping):
        parts = known.get("properties") or {}
        return {key: _typed(one, resolve(parts.get(key, {}), root), root) for key, one in value.items()}
    return value


def arguments_json(arguments: Mapping[str, Any]) -> str:
    """Return arguments as JSON.

    Raises:
        ValueError: they contain a number that JSON cannot represent.
    """
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate must be escaped
        text = json.dumps(arguments, allow_nan=False)
    return text


def _convert(text: str, schema: Any) -> Any:
    """Return bare text as a string if the schema allows a string, otherwise parsed as JSON or as a Python literal."""
    types = allowed_types(schema)
    if not types or types == {"string"}:
        return str(text)
    value = _parsed(text)
    if value is text:
        return str(text)
    return str(text) if "string" in types and not isinstance(value, list | dict) and value is not None else value


def _parsed(text: str) -> Any:
    """Return the value of a JSON text or a Python literal; any other text itself."""
    from llmctl.generation.tools.literals import python_literal

    try:
        return json.loads(_AS_JSON.get(text.strip(), text))
    except (ValueError, RecursionError):
        pass
    try:
        return python_literal(text) if text.lstrip()[:1] in ("[", "{") else text
    except ValueError:
        return text
