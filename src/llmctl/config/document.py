"""The schema as text: a starter file, and the rows of the reference page."""

import textwrap

import yaml

from llmctl.config.schema import all_keys, field_of, sections


def _default(key: str) -> object:
    field = field_of(key)
    return field.get_default(call_default_factory=True)


def starter_file() -> str:
    """A YAML file with every key commented out at its default, and its meaning above it."""
    lines = ["# Configuration of llmctl. Every key is shown with its default; take the # away to change one.", ""]
    section = ""
    for key in all_keys():
        name, _, inner = key.rpartition(".")
        if name != section:
            section = name
            lines += ["", f"# {sections()[name].__doc__}" if name else "", f"{name}:" if name else ""]
        indent = "  " if name else ""
        lines += [f"{indent}# {line}" for line in textwrap.wrap(field_of(key).description or "", 96)]
        value = yaml.safe_dump(_default(key), default_flow_style=True).strip().removesuffix("...").strip()
        lines.append(f"{indent}# {inner or key}: {value}")
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip() + "\n"


def reference_rows() -> list[tuple[str, str, str]]:
    """Every key as (key, default, meaning)."""
    return [(key, yaml.safe_dump(_default(key), default_flow_style=True).strip().removesuffix("...").strip(),
             field_of(key).description or "") for key in all_keys()]  # fmt: skip
