"""Prompts made of the columns of a row: `Summarise: {text}`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from llmctl.errors import UserError

_FLAG = "--prompt-template"


@dataclass(frozen=True)
class PromptTemplate:
    """A text with names of columns in braces.

    Attributes:
        parts: Pairs of literal text and the name of the column after it, or None.
    """

    parts: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the prompt of a row: texts as they are, other values as JSON.

        Raises:
            KeyError: the row has no value for a column.
        """
        return "".join(text + ("" if name is None else _as_text(values[name])) for text, name in self.parts)


def _as_text(value: Any) -> str:
    if value is None:
        raise KeyError
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_template(text: str) -> PromptTemplate:
    """Parse a template; `{{` and `}}` are braces.

    Raises:
        UserError: a brace has no partner, or no column is named.
    """
    parts: list[tuple[str, str | None]] = []
    try:
        for literal, name, spec, conversion in Formatter().parse(text):
            if name == "" or spec or conversion:
                raise ValueError("braces hold the name of a column and nothing else")
            parts.append((literal, name))
    except ValueError as error:
        hint = f'{_FLAG} "Summarise: {{text}}"; a brace itself is {{{{ or }}}}'
        raise UserError(f"{_FLAG}: {error}", hint=hint) from None
    template = PromptTemplate(tuple(parts))
    if not template.columns:
        hint = f'{_FLAG} "Summarise: {{text}}"; a text before every prompt is --system'
        raise UserError(f"{_FLAG} names no column, so every prompt would be the same", hint=hint)
    return template
