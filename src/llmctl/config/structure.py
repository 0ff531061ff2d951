"""The section `structure`: the form that the answer must have, given as text or as a file."""

import json
import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmctl.config.fields import Section
from llmctl.errors import UserError
from llmctl.paths import expand
from llmctl.text_files import NotTextError, read_text, reason

MAX_BYTES = 1_000_000


def is_grammar_text(value: str) -> bool:
    """Return True if the value is a grammar and not the path of a file."""
    return "\n" in value or bool(re.match(r"\s*start\b[^:]*:", value))


def is_schema_text(value: str) -> bool:
    """Return True if the value is a JSON schema and not the path of a file."""
    return value.lstrip().startswith("{")


def _choices(value: Any) -> Any:
    if isinstance(value, bool):
        value = [value]
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list):
        if any(isinstance(choice, bool) for choice in value):
            raise ValueError("put true and false in quotes: YAML reads them as truth values")
        return [str(choice) if isinstance(choice, int | float) else choice for choice in value]
    return value


class StructureSection(Section):
    """The form that the answer must have. Only one of these keys can be set; the prompt is not changed."""

    json_schema: dict[str, Any] | str | None = Field(
        None,
        description=(
            "JSON schema: a mapping, JSON text, or the path of a file, relative to the configuration file. "
            "A keyword that cannot be enforced is an error."
        ),
    )
    regex: str | None = Field(None, min_length=1, description="Regular expression that the whole answer must match.")
    choices: Annotated[list[str], BeforeValidator(_choices)] | None = Field(
        None, min_length=1, description="Possible answers: a list, or a,b,c."
    )
    grammar: str | None = Field(
        None,
        min_length=1,
        description=(
            "Grammar in llguidance's variant of Lark: its text, or the path of a file, relative to the configuration "
            "file."
        ),
    )

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, value: list[str] | None) -> list[str] | None:
        for choice in value or ():
            if not choice:
                raise ValueError("a choice is empty")
            if (value or []).count(choice) > 1:
                raise ValueError(f"{choice!r} is given twice")
        return value

    @model_validator(mode="after")
    def _check_only_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"only one of {', '.join(given)} can be set")
        return self


def written_out(section: StructureSection) -> StructureSection:
    """Return the section with files and JSON text replaced by their content.

    Raises:
        UserError: a file cannot be read, or a schema is not JSON.
    """
    schema, grammar = section.json_schema, section.grammar
    if isinstance(schema, str):
        return section.model_copy(update={"json_schema": _read_schema(schema)})
    if grammar is not None and not is_grammar_text(grammar):
        return section.model_copy(update={"grammar": _read("structure.grammar", grammar)})
    return section


def names_a_file(section: StructureSection) -> bool:
    """Return True if the schema or the grammar is the path of a file."""
    schema, grammar = section.json_schema, section.grammar
    return (isinstance(schema, str) and not is_schema_text(schema)) or (
        grammar is not None and not is_grammar_text(grammar)
    )


def _read_schema(given: str) -> Any:
    text = given if is_schema_text(given) else _read("structure.json_schema", given)
    where = "" if is_schema_text(given) else f" {given}:"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"structure.json_schema:{where} line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from error
    except RecursionError as error:
        raise UserError(f"structure.json_schema:{where} nested too deeply") from error


def _read(key: str, path: str) -> str:
    file = expand(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{key}: {file} is larger than {MAX_BYTES} bytes")
        return read_text(file)
    except (OSError, NotTextError) as error:
        raise UserError(f"{key}: {file}: {reason(error)}", hint="give a readable file, or the text itself") from error
