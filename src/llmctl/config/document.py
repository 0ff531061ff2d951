"""The schema as text: the starter file, and the rows of the reference page."""

import textwrap
from dataclasses import dataclass
from typing import Any

from llmctl.config.schema import Config, all_keys, default_of, field_of, sections
from llmctl.yaml_reader import dump


@dataclass(frozen=True)
class Row:
    """A row of the reference page.

    Attributes:
        key: The dotted path.
        default: The default as YAML.
        values: The accepted values in words.
        meaning: The effect.
    """

    key: str
    default: str
    values: str
    meaning: str


def starter_file() -> str:
    """Return a YAML file that has every key commented out at its default, with its meaning above it."""
    lines = [
        "# yaml-language-server: $schema=llmctl.schema.json",
        "# Editors with a YAML language server complete and check the keys once the schema is beside this file:",
        "# llmctl config schema > llmctl.schema.json",
        "#",
        "# Configuration of llmctl. Every key is shown with its default; remove the # to change one.",
        "",
    ]
    section = ""
    for key in all_keys():
        name, _, inner = key.rpartition(".")
        if name != section:
            section = name
            lines += ["", f"# {sections()[name].__doc__}" if name else "", f"{name}:" if name else ""]
        indent = "  " if name else ""
        lines += [f"{indent}# {line}" for line in textwrap.wrap(field_of(key).description or "", 96)]
        lines.append(f"{indent}# {inner or key}: {_default_text(key)}")
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip() + "\n"


def reference_rows() -> list[Row]:
    """Return a row for every key, in the order of the schema."""
    return [Row(key, _default_text(key), _allowed(key), field_of(key).description or "") for key in all_keys()]


def _default_text(key: str) -> str:
    return dump(default_of(key), default_flow_style=True).strip().removesuffix("...").strip()


_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_SHAPES = {
    "boolean": "true or false",
    "integer": "integer",
    "number": "number",
    "string": "text",
    "array": "list",
    "object": "map",
}


def _allowed(key: str) -> str:
    """Return the accepted values of a key in words: `integer, at least 1`."""
    section, _, inner = key.rpartition(".")
    model = sections()[section] if section else Config
    described = model.model_json_schema()["properties"][inner or key]
    parts = [part for part in described.get("anyOf", [described]) if part.get("type") != "null"]
    return " or ".join(dict.fromkeys(_shape(part) for part in parts))


def _shape(part: dict[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(str(option) for option in part["enum"])
    bounds = [f"{words} {part[name]}" for name, words in _BOUNDS.items() if name in part]
    return ", ".join([_SHAPES[part["type"]], *bounds])
