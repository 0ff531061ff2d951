"""The check that a tool's parameters can be enforced in a family's format."""

from collections.abc import Iterator, Mapping
from typing import Any

from llmctl.config import StructureSection
from llmctl.errors import UserError
from llmctl.generation.structured.schema_check import schemas_in
from llmctl.generation.structured.structure import make_structure
from llmctl.generation.tools.arguments import ArgumentSyntax
from llmctl.generation.tools.format import ToolFormat
from llmctl.generation.tools.scan import IncompleteError
from llmctl.generation.tools.schema import object_schema, parameters_of, properties_of

# keywords that only JSON enforces
_OF_TEXT = ("pattern", "format", "minLength", "maxLength")
_OF_OBJECT = ("patternProperties", "minProperties", "maxProperties", "anyOf", "oneOf", "allOf")
_OF_PARTS = ("patternProperties", "minProperties", "maxProperties", "minItems", "maxItems", "prefixItems")


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the function of a tool in OpenAI's format."""
    function: Mapping[str, Any] = tool["function"]
    return function


def is_strict(tool: Mapping[str, Any]) -> bool:
    """Return True if the schema of a tool must be enforced."""
    return bool(function_of(tool).get("strict"))


def argument_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a tool's arguments, whose type is object."""
    parameters = function_of(tool).get("parameters")
    schema = object_schema(parameters)
    if not parameters:
        return {**schema, "properties": {}, "additionalProperties": False}
    if schema.get("properties") == {} and not {"additionalProperties", "patternProperties"} & schema.keys():
        schema["additionalProperties"] = False  # explicitly empty properties allow no arguments
    return schema


def check_parameters(tool: Mapping[str, Any], index: int, form: ToolFormat) -> None:
    """Check that the parameters of a tool can be enforced.

    Args:
        index: The number of the tool.

    Raises:
        UserError: they cannot; the details have `param`.
    """
    param = f"tools[{index}].function.parameters"
    schema, details = argument_schema(tool), {"param": param}
    if schema["type"] != "object":
        raise UserError(f"{param}: the schema must describe an object", details=details)
    try:
        make_structure(StructureSection(json_schema=schema))
    except UserError as error:
        message = str(error).replace("structure.json_schema:", f"{param}:")
        raise UserError(message, hint=error.hint, details={**error.details, **details}) from error
    if (name := _unwritable_name(schema, form)) is not None:
        raise UserError(
            f"{param}: this model's format of calls cannot have a parameter named {name!r}",
            hint="use letters, digits and underscores",
            details=details,
        )
    place = next(_unenforced(schema, form.syntax), None) if is_strict(tool) else None
    if place is not None:
        raise UserError(
            f"{param}.{place} cannot be enforced: this model does not write arguments as JSON",
            hint="remove it from the schema, or omit strict",
            details=details,
        )


def _unenforced(schema: Mapping[str, Any], syntax: ArgumentSyntax) -> Iterator[str]:
    """Yield the places in a schema that a syntax does not enforce."""
    if syntax.json_values == "all":
        return
    yield from (word for word in _OF_OBJECT if word in schema)
    if syntax.json_values == "others":
        for parameter in parameters_of(schema, schema):
            for alternative in parameter.alternatives if parameter.is_text else ():
                yield from (f"properties.{parameter.name}.{word}" for word in _OF_TEXT if word in alternative)
    elif syntax.json_values == "scalars":
        for place, part in schemas_in(schema):
            words = [word for word in (*_OF_TEXT, *_OF_PARTS) if isinstance(part, Mapping) and word in part]
            yield from (f"{place}/{word}".removeprefix("#/").replace("/", ".") for word in words)


def _unwritable_name(schema: Mapping[str, Any], form: ToolFormat) -> str | None:
    """Return the first name of a property that is not read again as the format writes it, or None."""
    syntax = form.syntax
    if syntax.json_values == "all":
        return None
    is_nested = syntax.json_values == "scalars"
    parts = [part for _, part in schemas_in(schema) if isinstance(part, Mapping)] if is_nested else [schema]
    for name in (name for part in parts for name in properties_of(part)):
        one = {"type": "object", "properties": {name: {"type": "integer"}}}
        text = syntax.write({name: 1}) + form.end
        try:
            value, _ = syntax.scan(text, 0, following=(form.end,), schema=one, final=True)
        except (IncompleteError, ValueError):
            return name
        if value != {name: 1}:
            return name
    return None
