"""The section `structure`: what form the answer must have, given itself or as a file."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmctl.config.section import Section
from llmctl.errors import UserError

MAX_BYTES = 1_000_000


def is_grammar_text(value: str) -> bool:
    """Whether a grammar is given itself rather than the path of its file."""
    return "\n" in value or bool(re.match(r"\s*start\b[^:]*:", value))


def is_schema_text(value: str) -> bool:
    """Whether a JSON schema is given itself rather than the path of its file."""
    return value.lstrip().startswith("{")


def _choices(value: Any) -> Any:
    if isinstance(value, bool):
        value = [value]
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list):
        if any(isinstance(choice, bool) for choice in value):
            raise ValueError("put yes, no, true and false in quotes: YAML reads them as truth values")
        return [str(choice) if isinstance(choice, int | float) else choice for choice in value]
    return value


class StructureSection(Section):
    """What form the answer must have. One of these keys at a time; the prompt stays as it is."""

    json_schema: dict[str, Any] | str | None = Field(
        None,
        description=(
            "A JSON schema: a mapping, JSON text, or the path of a file, which in a file starts at that file. "
            "A keyword that cannot be enforced is an error."
        ),
    )
    regex: str | None = Field(None, min_length=1, description="A regular expression that the whole answer matches.")
    choices: Annotated[list[str], BeforeValidator(_choices)] | None = Field(
        None, min_length=1, description="The answer is one of these texts: a list, or a,b,c."
    )
    grammar: str | None = Field(
        None,
        min_length=1,
        description=(
            "A grammar in llguidance's variant of Lark: its text, or the path of a file, which in a file starts at "
            "that file."
        ),
    )

    @field_validator("choices")
    @classmethod
    def _different(cls, value: list[str] | None) -> list[str] | None:
        for choice in value or ():
            if not choice:
                raise ValueError("a choice is empty")
            if (value or []).count(choice) > 1:
                raise ValueError(f"{choice!r} is there twice")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"only one of {', '.join(given)} at a time")
        return self


def written_out(section: StructureSection) -> StructureSection:
    """The same with the schema and the grammar themselves where a file or JSON text was given.

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
    """Whether the schema or the grammar lies in a file."""
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
        raise UserError(f"structure.json_schema:{where} it is nested too deep") from error


def _read(key: str, path: str) -> str:
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{key}: {file} is larger than {MAX_BYTES} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{key}: {file}: {reason}", hint="give a file, or the text itself") from error
