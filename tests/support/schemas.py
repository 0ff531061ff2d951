"""JSON schemas of growing difficulty, each made by its number alone."""

import random
from typing import Any

FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
PATTERNS = (
    r"^[a-z]{2,6}$",
    r"^[A-Z]{3}-\d{4}$",
    r"^(red|green|blue)( light)?$",
    r"^\+?[0-9]{3,9}$",
    r"^[^\s@]{1,5}@x\.de$",
)
# What no engine enforces, with a schema in which it stands.
REFUSED: dict[str, dict[str, Any]] = {
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "not": {"type": "integer", "not": {"const": 3}},
    "if": {"type": "integer", "if": {"minimum": 3}},
    "contains": {"type": "array", "contains": {"const": 1}},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "format": {"type": "string", "format": "binary"},
    "pattern": {"type": "string", "pattern": "^(?!x)[a-z]+$"},
    "$ref": {"$ref": "https://example.com/other.json"},
}


def make_schema(number: int) -> dict[str, Any]:
    """Schema `number`: its size and what it is made of grow with it up to 300; every tenth holds what is refused."""
    choice = random.Random(number)
    level = number // 60  # 0 … 4
    schema = _object(choice, level, depth=0) if level else _leaf(choice)
    if level >= 3 and number % 3 == 0:
        schema = _recursive(choice, schema)
    if number % 10 == 9:
        keyword = sorted(REFUSED)[choice.randrange(len(REFUSED))]
        schema = {"type": "object", "properties": {"a": schema, "b": REFUSED[keyword]}, "required": ["a", "b"]}
        if "$defs" in schema["properties"]["a"]:
            schema["$defs"] = schema["properties"]["a"].pop("$defs")
    return schema


def _recursive(choice: random.Random, schema: dict[str, Any]) -> dict[str, Any]:
    node = {
        "type": "object",
        "properties": {
            "value": _leaf(choice),
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "more": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        },
        "required": ["value", "next"],
    }
    schema["properties"] = {"tree": {"$ref": "#/$defs/node"}, **schema["properties"]}
    schema["required"] = ["tree", *schema.get("required", [])]
    return {"$defs": {"node": node}, **schema}


def _object(choice: random.Random, level: int, *, depth: int) -> dict[str, Any]:
    names = choice.sample(["name", "age", "kind", "größe", "a b", "tags", "x/y", 'q"q', "at", "note"], 1 + level)
    properties = {name: _value(choice, level, depth=depth + 1) for name in names}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    schema["required"] = [name for name in names if choice.random() < 0.7]
    if choice.random() < 0.5:
        schema["additionalProperties"] = False
    elif level >= 2 and choice.random() < 0.3:
        schema["additionalProperties"] = {"type": "boolean"}
    return schema


def _value(choice: random.Random, level: int, *, depth: int) -> dict[str, Any]:
    kinds = (
        ["leaf", "leaf", "leaf"]
        if depth > level
        else ["leaf", "object", "array", "anyOf", "tuple", "oneOf", "allOf", "map"]
    )
    kind = choice.choice(kinds)
    if kind == "object":
        return _object(choice, level - 1, depth=depth)
    if kind == "array":
        fewest = choice.randrange(3)
        return {"type": "array", "items": _leaf(choice), "minItems": fewest, "maxItems": fewest + choice.randrange(4)}
    if kind == "tuple":
        return {"type": "array", "prefixItems": [_leaf(choice), _leaf(choice)], "items": False, "minItems": 2}
    if kind == "anyOf":
        return {"anyOf": [_leaf(choice), _object(choice, 1, depth=depth + 1), {"type": "null"}]}
    if kind == "oneOf":
        return {
            "oneOf": [
                {"type": "object", "properties": {"t": {"const": tag}, "v": _leaf(choice)}, "required": ["t", "v"]}
                for tag in ("a", "b")
            ]
        }
    if kind == "allOf":
        return {
            "allOf": [
                {"type": "integer", "minimum": choice.randrange(-9, 9)},
                {"maximum": 10 ** choice.randrange(1, 6)},
            ]
        }
    if kind == "map":
        return {"type": "object", "patternProperties": {"^k[0-9]$": _leaf(choice)}, "additionalProperties": False}
    return _leaf(choice)


def _leaf(choice: random.Random) -> dict[str, Any]:
    low, length = choice.randrange(-100, 100), choice.randrange(6)
    leaves: list[dict[str, Any]] = [
        {"type": "integer"},
        {"type": "integer", "minimum": low, "maximum": low + choice.randrange(1, 1000)},
        {"type": "integer", "exclusiveMinimum": low, "multipleOf": choice.randrange(2, 12)},
        {"type": "number"},
        {"type": "number", "minimum": low, "maximum": low + 0.5},
        {"type": "number", "exclusiveMaximum": low, "multipleOf": 0.25},
        {"type": "boolean"},
        {"type": "string", "maxLength": length + 2, "minLength": length},
        {"type": "string", "pattern": choice.choice(PATTERNS)},
        {"type": "string", "format": choice.choice(FORMATS), "maxLength": 60},
        {"enum": ["red", "a, b", 'q"q', "é", low, 1.5, None, True, [1], {"k": "v"}][: choice.randrange(1, 10)]},
        {"const": choice.choice(["yes", low, None, {"a": [1, 2]}])},
        {"type": ["string", "null", "integer"], "maxLength": 5, "minimum": low},
    ]
    return choice.choice(leaves)
