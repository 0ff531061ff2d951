"""The check that a JSON schema can be enforced exactly.

llguidance ignores unknown keywords, and enforces some known ones only partly. Every keyword outside the tables below is
refused, with its place, before any token is generated.
"""

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from llmctl.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 64

_NESTED = {  # keyword -> the shape of the schemas in its value
    "properties": "map",
    "patternProperties": "map",
    "additionalProperties": "one",
    "items": "one",
    "additionalItems": "one",
    "prefixItems": "list",
    "anyOf": "list",
    "oneOf": "list",
    "allOf": "list",
}
_IN_PLACE = ("anyOf", "oneOf", "allOf")  # their schemas describe the same value as the enclosing schema
_VALUES = {  # keyword -> the type of its value
    "type": "a type or a list of types",
    "enum": "a list",
    "const": "",
    "$ref": "a text",
    "required": "a list of texts",
    "pattern": "a text",
    "format": "a text",
    "minItems": "a count",
    "maxItems": "a count",
    "minProperties": "a count",
    "maxProperties": "a count",
    "minLength": "a count",
    "maxLength": "a count",
    "minimum": "a number",
    "maximum": "a number",
    "exclusiveMinimum": "a number",
    "exclusiveMaximum": "a number",
    "multipleOf": "a number",
}
_ANNOTATIONS = frozenset(  # annotations, which do not constrain the value
    {
        "$schema", "$id", "id", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
        "example", "deprecated", "readOnly", "writeOnly", "discriminator", "contentMediaType", "contentEncoding",
    }
)  # fmt: skip
_KNOWN_TO_JSON_SCHEMA = frozenset(
    {
        "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
        "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties",
        "contentSchema", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary",
    }
)  # fmt: skip
_EMPTY = {
    "uniqueItems": False,
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
}  # no effect
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_BESIDE_PROPERTIES = (
    "additionalProperties", "patternProperties", "minProperties", "$ref", *_IN_PLACE
)  # fmt: skip
# llguidance's dates allow 29 February in every year, and a year 0.
_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d{2}|[1-9]\d{3})"
_FOURTH = "(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = rf"(\d{{2}}{_FOURTH}|{_FOURTH}00)"
_DATE = rf"({_YEAR}-(0[13-9]|1[0-2])-\d{{2}}|{_YEAR}-02-([01]\d|2[0-8])|{_LEAP_YEAR}-02-29)"
_STRICTER = {"date": rf"^{_DATE}$", "date-time": rf"^{_DATE}[Tt]\d{{2}}:\d{{2}}:[0-5]\d(\..*|[Zz]|[+-].*)$"}


def check_schema(schema: Any) -> dict[str, Any]:
    """Return the schema for llguidance, after checking that every keyword can be enforced.

    Objects that list their `properties` and do not mention other properties are closed to others. This is usually what
    is meant, and answers without other properties are valid.

    Raises:
        UserError: a keyword cannot be enforced; the message names it and its place.
    """
    if schema is False:
        raise UserError("structure.json_schema: false allows no value at all")
    if not isinstance(schema, dict | bool):
        raise UserError(f"structure.json_schema: a schema is a mapping, this is {json.dumps(schema)[:60]}")
    return _Check(json.loads(schema_text({} if schema is True else schema))).run()


def schema_text(schema: Any) -> str:
    """Return a schema as JSON.

    Raises:
        UserError: the schema has a value that JSON cannot represent, or is too large.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"structure.json_schema: this is not JSON: {error}") from error
    if len(text) > MAX_BYTES:
        raise UserError(f"structure.json_schema: it has {len(text)} bytes, the limit is {MAX_BYTES}")
    return text


def schemas_in(schema: Any, place: str = "#") -> Iterator[tuple[str, Any]]:
    """Yield the place (a JSON pointer) and the value of a schema and of every schema inside it, outer ones first."""
    yield place, schema
    if not isinstance(schema, dict):
        return
    for keyword, part, inner_place in _inner(schema, place):
        if keyword != "$ref":
            yield from schemas_in(part, inner_place)
    for store in ("$defs", "definitions"):
        for name, part in schema.get(store, {}).items():
            yield from schemas_in(part, f"{place}/{store}/{name}")


class _Check:
    """One traversal of a schema. Its state: the visited places, and the objects that may be closed."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.closable: dict[str, bool] = {}
        self.seen: set[tuple[str, bool]] = set()

    def run(self) -> dict[str, Any]:
        if "$ref" in self.root and self.root["$ref"] == "#":
            raise _refused("#", "$ref", "it refers to itself")
        self.visit(self.root, "#", alone=True, around=(), depth=0)
        for place, closable in self.closable.items():
            if closable:
                self.at(place)["additionalProperties"] = False
        return self.root

    def visit(self, schema: Any, place: str, *, alone: bool, around: tuple[str, ...], depth: int) -> None:
        """Check one schema and those inside it.

        Args:
            place: The place of the schema, as a JSON pointer.
            alone: True if no other schema describes the same value.
            around: The places of enclosing schemas that describe the same value, outermost first.
        """
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise UserError(f"structure.json_schema: {place}: a schema is a mapping, this is {json.dumps(schema)[:60]}")
        if place in around:
            raise _refused(place, "$ref", "it refers to itself without any other schema in between")
        if depth > MAX_DEPTH:
            raise UserError(f"structure.json_schema: {place}: schemas are nested more than {MAX_DEPTH} deep")
        if (place, alone) in self.seen:
            return
        self.seen.add((place, alone))
        for keyword in list(schema):
            self.check_keyword(schema, place, keyword)
        _check_free_keys(schema, place)
        self.tighten(schema, place, alone=alone)
        for keyword, inner, inner_place in list(_inner(schema, place)):
            same = keyword in _IN_PLACE or keyword == "$ref"
            inner_alone = alone and keyword != "allOf" and not _has_siblings(schema, keyword) if same else True
            target = self.at(inner_place) if keyword == "$ref" else inner
            self.visit(target, inner_place, alone=inner_alone, around=(*around, place) if same else (), depth=depth + 1)

    def tighten(self, schema: dict[str, Any], place: str, *, alone: bool) -> None:
        """Record if an object may be closed, and tighten formats that llguidance enforces only partly."""
        if schema.get("properties") and not any(keyword in schema for keyword in _BESIDE_PROPERTIES):
            listed = set(schema.get("required", ())) <= set(schema["properties"])
            self.closable[place] = self.closable.get(place, True) and alone and listed
        stricter = _STRICTER.get(schema.get("format", ""))
        if stricter and {"pattern": stricter} not in schema.get("allOf", []):
            schema["allOf"] = [*schema.get("allOf", []), {"pattern": stricter}]

    def check_keyword(self, schema: dict[str, Any], place: str, keyword: str) -> None:
        value = schema[keyword]
        if keyword in _EMPTY and value is _EMPTY[keyword]:
            del schema[keyword]
        elif keyword in _NESTED:
            _check_nested(place, keyword, value)
        elif keyword in _VALUES:
            _check_value(schema, place, keyword, value)
        elif keyword in ("$id", "id") and place != "#":
            raise _refused(place, keyword, "only the whole schema may have one")
        elif keyword in _KNOWN_TO_JSON_SCHEMA or keyword == "x-guidance":
            raise _refused(
                place, keyword, "it cannot be enforced while tokens are chosen", hint=_HINTS.get(keyword, _AFTERWARDS)
            )
        elif keyword not in _ANNOTATIONS and not keyword.startswith("x-"):
            near = difflib.get_close_matches(keyword, [*_NESTED, *_VALUES, *_KNOWN_TO_JSON_SCHEMA], n=1)
            raise _refused(place, keyword, "unknown keyword" + (f"; did you mean {near[0]}?" if near else ""))

    def at(self, pointer: str) -> Any:
        """Return the target of a JSON pointer such as #/a/b."""
        target: Any = self.root
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(name)] if isinstance(target, list) else target[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UserError(f"structure.json_schema: $ref {pointer}: the target does not exist") from None
        return target


_AFTERWARDS = "omit it and check the answer for it afterwards"
_HINTS = {
    "uniqueItems": "omit it and remove duplicates afterwards",
    "not": "list what is allowed with enum, pattern or anyOf",
    "propertyNames": "use patternProperties with additionalProperties: false",
    "contains": "use prefixItems, or minItems with items",
}


def _refused(place: str, keyword: str, why: str, *, hint: str | None = None) -> UserError:
    return UserError(
        f"structure.json_schema: {place}/{keyword}: {why}",
        hint=hint,
        details={"place": place, "keyword": keyword},
    )


def _check_nested(place: str, keyword: str, value: Any) -> None:
    """Raise UserError if the schemas in a keyword have the wrong shape."""
    shape = _NESTED[keyword]
    if shape == "map" and not isinstance(value, dict):
        raise _refused(place, keyword, "it must be a mapping from names to schemas")
    if shape == "list" and not (isinstance(value, list) and value):
        raise _refused(place, keyword, "it must be a non-empty list of schemas")
    if shape == "one" and not isinstance(value, dict | bool):
        remark = "; a list of schemas is called prefixItems" if keyword == "items" else ""
        raise _refused(place, keyword, f"it must be one schema{remark}")


def _check_value(schema: dict[str, Any], place: str, keyword: str, value: Any) -> None:
    expected = _VALUES[keyword]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "a type or a list of types": value != [] and all(kind in _TYPES for kind in _as_list(value)),
        "a list": isinstance(value, list) and bool(value),
        "a list of texts": isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a text": isinstance(value, str),
        "a count": is_number and value >= 0 and value == int(value),
        "a number": is_number,
        "": True,
    }[expected]
    if not fits:
        remark = f" ({', '.join(_TYPES)})" if keyword == "type" else ""
        raise _refused(place, keyword, f"it must be {expected}{remark}, it is {json.dumps(value)[:60]}")
    if keyword == "format" and value not in FORMATS:
        raise _refused(place, keyword, f"{value} cannot be enforced; supported: {', '.join(FORMATS)}", hint=_AFTERWARDS)
    if keyword == "$ref" and not (value == "#" or value.startswith("#/")):
        raise _refused(place, keyword, f"{value} is not inside this schema (#/…), and other schemas are not fetched")
    if keyword == "pattern":
        _check_pattern(place, value)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_pattern(place: str, pattern: str) -> None:
    """Raise UserError for look-around and back-references, which are not regular."""
    if re.search(r"\(\?(=|!|<=|<!)", pattern):
        raise _refused(place, "pattern", f"look-around cannot be enforced: {pattern}", hint=_AFTERWARDS)
    if re.search(r"(?<!\\)(\\\\)*\\[1-9bB]", pattern):
        raise _refused(place, "pattern", f"back-references and word boundaries cannot be enforced: {pattern}")


def _check_free_keys(schema: dict[str, Any], place: str) -> None:
    """Raise UserError for counts of unlisted names: llguidance would count {"a": 1, "a": 2} as two."""
    if schema.get("additionalProperties") is False and "patternProperties" not in schema:
        return
    fewest, required = schema.get("minProperties", 0), len(set(schema.get("required", ())))
    if fewest > required + 1:
        raise _refused(place, "minProperties", f"at most one more than `required` lists ({required}) can be enforced")


def _has_siblings(schema: dict[str, Any], keyword: str) -> bool:
    """Return True if another keyword also describes the same value."""
    return any(other != keyword and other not in _ANNOTATIONS for other in schema)


def _inner(schema: dict[str, Any], place: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the schemas inside a schema as (keyword, schema, place); for $ref, (keyword, None, target place)."""
    if "$ref" in schema:
        yield "$ref", None, unquote(schema["$ref"])
    for keyword, shape in _NESTED.items():
        value = schema.get(keyword)
        if keyword not in schema:
            continue
        if shape == "one":
            yield keyword, value, f"{place}/{keyword}"
        elif shape == "list":
            for number, inner in enumerate(value or ()):
                yield keyword, inner, f"{place}/{keyword}/{number}"
        else:
            for name, inner in (value or {}).items():
                yield keyword, inner, f"{place}/{keyword}/{name.replace('~', '~0').replace('/', '~1')}"
