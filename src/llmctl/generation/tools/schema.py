"""The parameter schemas of tools, as far as formats without JSON need them.

Only schemas that are enforced have been checked; any other may be malformed.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.generation.tools.literals import python_literal

ANY_NAME = "/[a-zA-Z0-9_.-]+/"  # a name that a schema does not list, in a grammar
_MAX_REFERENCES = 20  # references may refer to references, or to each other
_AS_JSON = {"True": "true", "False": "false", "None": "null"}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool.

    Attributes:
        schema: Its schema.
        alternatives: See `alternatives_of`.
        is_required: True if every call has it.
    """

    name: str
    schema: Any
    alternatives: Sequence[Mapping[str, Any]]
    is_required: bool

    @property
    def is_text(self) -> bool:
        """True if its value may be any string, which is then written without quotes."""
        return any(is_any_text(one) for one in self.alternatives)


def object_schema(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the schema of a tool's arguments with its type and properties, and without a reference at the top."""
    schema = dict(parameters or {})
    if "$ref" in schema:
        schema = {**schema, **resolve(schema, schema)}
        del schema["$ref"]
    return {"type": "object", **schema}


def properties_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schemas of an object's properties by their names."""
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def parameters_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters of a tool or the properties of an object, in the order of the schema.

    Args:
        root: The schema to which references refer.
    """
    required = schema.get("required")
    names = required if isinstance(required, list) else ()
    return [
        Parameter(name, value, alternatives_of(value, root), name in names)
        for name, value in properties_of(schema).items()
    ]


def additional_of(schema: Mapping[str, Any]) -> Any:
    """Return the schema of properties that an object does not list; None if it may have no others."""
    further = schema.get("additionalProperties", None if properties_of(schema) else {})
    return None if further is False else {} if further is True else further


def resolve(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with its own reference replaced by what it refers to in `root`."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            break
        target: Any = root
        for key in reference.split("/")[1:]:
            target = target.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        schema = target
    return schema if isinstance(schema, Mapping) else {}


def schema_key(schema: Any, root: Mapping[str, Any]) -> Hashable:
    """Return a key that equal schemas share, if their references refer to the same."""
    text = json.dumps(schema, sort_keys=True)
    return (text, id(root) if '"$ref"' in text else None)


def alternatives_of(schema: Any, root: Mapping[str, Any], *, depth: int = 0) -> list[Mapping[str, Any]]:
    """Return schemas of one type each, so that a value matches one of them if it matches the schema.

    A schema without a type allows any value. The only values that are allowed are in `enum`.
    """
    schema = resolve(schema, root)
    lists = (schema[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list))
    inner: list[Any] = next(lists, [])
    if depth < _MAX_REFERENCES and inner and (len(inner) == 1 or "allOf" not in schema):
        rest = {key: value for key, value in schema.items() if value is not inner}
        merged = [{**rest, **resolve(one, root)} for one in inner]
        return [one for part in merged for one in alternatives_of(part, root, depth=depth + 1)]
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        texts = [value for value in values if isinstance(value, str)]
        others = [value for value in values if not isinstance(value, str)]
        return [*([{"type": "string", "enum": texts}] if texts else []), *([{"enum": others}] if others else [])]
    schema = {key: value for key, value in schema.items() if key != "enum"}
    return [{**schema, "type": kind} for kind in _types_of(schema)] or [schema]


def _types_of(schema: Mapping[str, Any]) -> list[str]:
    named = schema.get("type")
    if named is None and properties_of(schema):
        return ["object"]
    return [named] if isinstance(named, str) else [one for one in named or () if isinstance(one, str)]


def is_any_text(alternative: Mapping[str, Any]) -> bool:
    """Return True if an alternative allows any string, or any value."""
    return "enum" not in alternative and alternative.get("type", "string") == "string"


def convert(text: str, alternatives: Sequence[Mapping[str, Any]]) -> Any:
    """Return the value of bare text: one of the values that are allowed, a string, or parsed as JSON or Python."""
    for value in (value for one in alternatives for value in one.get("enum", ())):
        if text == value or (not isinstance(value, str) and json.dumps(value) == json.dumps(_parsed(text)[0])):
            return value
    types = {one.get("type") for one in alternatives if "enum" not in one}
    if not text.strip() and not types & {"string", None}:
        return [] if "array" in types else {} if "object" in types else text
    is_text = any(is_any_text(one) for one in alternatives)
    if is_text and types <= {"string", None}:
        return text
    value, is_parsed = _parsed(text)
    if not is_parsed or not is_text:
        return value
    kind = "null" if value is None else _TYPES[type(value)]
    is_clear = kind in ("array", "object") or (kind == "null" and text == text.strip())  # numbers may be texts
    return value if is_clear and kind in types else text


def arguments_json(arguments: Mapping[str, Any]) -> str:
    """Return arguments as JSON.

    Raises:
        ValueError: they contain a number that JSON cannot represent, or are nested too deep.
    """
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate must be escaped
        text = json.dumps(arguments, allow_nan=False)
    except RecursionError as error:
        raise ValueError("arguments are nested too deep") from error
    return text


def _parsed(text: str) -> tuple[Any, bool]:
    """Return the value of a JSON text or a Python literal, and True; any other text itself, and False."""
    try:
        return json.loads(_AS_JSON.get(text.strip(), text)), True
    except (ValueError, RecursionError):
        pass
    try:
        return (python_literal(text), True) if text.lstrip()[:1] in ("[", "{", "(") else (text, False)
    except ValueError:
        return text, False
