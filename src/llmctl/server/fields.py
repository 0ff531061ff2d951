"""The base of request bodies, and the three kinds of fields: honoured, accepted without effect, and refused.

Nothing that a client asks for is dropped silently. A key without a field is an error, and so is a field that is known
from other servers and not supported here, unless its value asks for nothing. The kinds and explanations of the fields
make the reference page, docs/reference/requests.md.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmctl.synonyms import find_synonym, names_of

REFUSED = "unsupported_parameter"  # the type of the error, and OpenAI's code for it
Kind = Literal["honoured", "no effect", "refused"]
_KINDS = get_args(Kind)


class Body(BaseModel):
    """A request body: no type coercion, and no key without a field."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class WithoutEffect:
    """Marks a field that is accepted and has no effect.

    Attributes:
        reason: Why it has none here.
    """

    reason: str


@dataclass(frozen=True)
class Refused:
    """Marks a field that is refused. Its annotation allows the values that ask for nothing.

    Attributes:
        reason: What to use in its place, or why it is not supported.
    """

    reason: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, inner: Any) -> Any:
            try:
                return inner(value)
            except ValidationError:
                raise PydanticCustomError(REFUSED, "not supported: {reason}", {"reason": self.reason}) from None

        return core_schema.no_info_wrap_validator_function(check, handler(source))


@dataclass(frozen=True)
class Row:
    """A row of the reference page.

    Attributes:
        path: The field, with the fields that contain it: `messages[].role`.
        kind: Its kind.
        explanation: Its meaning, or the reason why it has no effect or is refused.
        accepted: The values of a refused field that are accepted, as JSON. Every such field can also be null.
    """

    path: str
    kind: Kind
    explanation: str
    accepted: str = ""


def rows(body: type[Body], prefix: str = "") -> Iterator[Row]:
    """Yield a row for each field of a body, in the order of their kinds, and after it those of the bodies inside it."""

    def order(item: tuple[str, FieldInfo]) -> tuple[int, bool]:
        return _KINDS.index(_kind(item[1])[0]), item[0] not in body.__annotations__  # a body's own fields are first

    for name, field in sorted(_by_name(body).items(), key=order):
        kind, explanation = _kind(field)
        accepted = ", ".join(map(json.dumps, _literals(field.annotation))) if kind == "refused" else ""
        yield Row(f"{prefix}{name}", kind, explanation, accepted)
        if kind == "honoured":
            inner: dict[str, Row] = {}
            for other in _bodies_in(field.annotation):
                is_list = _is_in_list(field.annotation, other)
                for row in rows(other, f"{prefix}{name}{'[]' if is_list else ''}."):
                    inner.setdefault(row.path, row)
            yield from inner.values()


def closest_field(body: type[Body] | None, loc: Sequence[int | str]) -> str | None:
    """Return the field whose name is closest to the last part of `loc`, the place of an unknown key."""
    bodies = [] if body is None else [body]
    for part in loc[:-1]:
        fields = [field for one in bodies if (field := _by_name(one).get(str(part))) is not None]
        if fields:  # other parts are positions in lists, and pydantic's labels of the types in a union
            bodies = [inner for field in fields for inner in _bodies_in(field.annotation)]
    names = [name for one in bodies for name, field in _by_name(one).items() if _kind(field)[0] == "honoured"]
    synonym = find_synonym(str(loc[-1]))
    key = synonym.key if synonym is not None and synonym.value is None else ""
    same = [name for name in (key.rpartition(".")[2], *names_of(key)) if name in names]
    return next(iter(same or get_close_matches(str(loc[-1]), names, n=1)), None)


def _by_name(body: type[Body]) -> dict[str, FieldInfo]:
    """Return the fields of a body by the names that clients use."""
    return {field.alias or name: field for name, field in body.model_fields.items()}


def _kind(field: FieldInfo) -> tuple[Kind, str]:
    for mark in field.metadata:
        if isinstance(mark, Refused):
            return "refused", mark.reason
        if isinstance(mark, WithoutEffect):
            return "no effect", mark.reason
    return "honoured", field.description or ""


def _literals(annotation: Any) -> list[Any]:
    """Return the literal values in a type."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _literals(part)]


def _bodies_in(annotation: Any) -> list[type[Body]]:
    """Return the bodies that a type contains, in order."""
    if isinstance(annotation, type) and issubclass(annotation, Body):
        return [annotation]
    found = [body for part in get_args(annotation) for body in _bodies_in(part)]
    return list(dict.fromkeys(found))


def _is_in_list(annotation: Any, body: type[Body]) -> bool:
    """Return True if a type contains a body only within lists."""
    if annotation is body:
        return False
    if get_origin(annotation) is list:
        return True
    return all(_is_in_list(part, body) for part in get_args(annotation) if body in _bodies_in(part))
