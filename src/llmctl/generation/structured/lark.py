"""Writing of grammars in llguidance's dialect of Lark, in which special tokens are named by their ids."""

import json
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from llmctl.generation.structured.schema_check import check_schema
from llmctl.generation.structured.structure import JSON_OPTIONS

ANY_TEXT = r"/(.|\n)*/"


class LarkWriter:
    """Writes the rules of one grammar. Its state: the rules so far.

    Args:
        special: The ids of the tokens that a grammar must name by id, by their text.
        values: Patterns for characters in literals that stand for values.
    """

    def __init__(self, special: Mapping[str, int], values: Mapping[str, str] | None = None) -> None:
        self._special, self._values = special, values or {}
        self._rules = [f"TEXT: {ANY_TEXT}"]
        self._names = {"TEXT"}
        self._shared: dict[Hashable, str] = {}

    @property
    def space(self) -> str:
        """The symbol for a little white space, or none."""
        if not self.has("SPACE"):
            self.add(r"SPACE: /[ \n]{0,4}/")
        return "SPACE"

    def add(self, rule: str) -> None:
        """Add a rule."""
        self._rules.append(rule)
        self._names.add(rule.partition(":")[0].partition("[")[0])

    def has(self, name: str) -> bool:
        """Return True if there is a rule of that name."""
        return name in self._names

    def shared(self, name: str, key: Hashable, body: Callable[[], str]) -> str:
        """Return the name of the rule with a key. The first time, add it; its body may refer to itself."""
        if key not in self._shared:
            self._shared[key] = name
            self.add(f"{name}: {body()}")
        return self._shared[key]

    def json(self, schema: Any, root: Mapping[str, Any]) -> str:
        """Return the symbol for a JSON value.

        Args:
            schema: Its schema, with keywords that can be enforced.
            root: The schema to which its references refer.
        """
        if '"$ref"' in json.dumps(schema):
            schema = {**_within_root(schema), "$defs": {"root": _within_root(_referenced(schema, root))}}
        text = json.dumps({**check_schema(schema), "x-guidance": JSON_OPTIONS}, ensure_ascii=False)
        return self.shared(f"json_{len(self._shared)}", text, lambda: f"%json {text}")

    def begins_with_special(self, text: str) -> bool:
        """Return True if a text begins with a special token, which `TEXT` cannot contain."""
        return any(text.startswith(token) for token in self._special)

    def until(self, text: str) -> str:
        """Return the symbol for any text up to and including `text`."""
        name = f"until_{len(self._shared)}"
        return self.shared(name, ("until", text), lambda: self._until(name, text))

    def _until(self, name: str, text: str) -> str:
        special = [at for token in self._special if (at := text.find(token)) >= 0]
        if not special:
            self.add(f"{name}_lazy[lazy]: TEXT {self.literal(text)}")
            return f"{name}_lazy"
        if min(special) == 0:
            return f"TEXT {self.literal(text)}"
        # a lexeme cannot contain a special token: it ends with what is before the first one
        before, after = text[: min(special)], text[min(special) :]
        self.add(rf"{name.upper()}_HEAD: /(.|\n)*{_escaped(before)}/")
        return f"{name.upper()}_HEAD {self.literal(after)}"

    def literal(self, text: str) -> str:
        """Return the symbols for a text; empty for an empty text."""
        names = sorted([*self._special, *self._values], key=len, reverse=True)
        pattern = "|".join(map(re.escape, names)) or "(?!)"
        parts = []
        for part in re.split(f"({pattern})", text):
            if part in self._special:
                parts.append(f"<[{self._special[part]}]>")
            elif part in self._values:
                parts.append(f"/{self._values[part]}/")
            elif part:
                parts.append(json.dumps(part, ensure_ascii=False).replace("\x7f", "\\u007f"))
        return " ".join(parts)

    def text(self, start: str) -> str:
        """Return the whole grammar, with `start` as the body of its first rule."""
        return "\n".join([f"start: {start}", *self._rules])


def _escaped(text: str) -> str:
    """Return a pattern in Lark that matches a text."""
    return re.escape(text).replace("\\\n", r"\n").replace("/", r"\/")


def _within_root(schema: Any) -> Any:
    """Return a schema whose references refer to the definition `root`, and not to the whole schema."""
    if isinstance(schema, list):
        return [_within_root(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    changed = {key: value if key in ("enum", "const") else _within_root(value) for key, value in schema.items()}
    if isinstance(reference := changed.get("$ref"), str) and reference.startswith("#"):
        changed["$ref"] = f"#/$defs/root{reference[1:]}"
    return changed


def _referenced(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parts of a root schema to which a schema may refer."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    references = re.findall(r'"\$ref": "([^"]*)"', json.dumps([schema, shared]))
    if all(reference.startswith(("#/$defs/", "#/definitions/")) for reference in references):
        return shared
    return {key: value for key, value in root.items() if key not in ("$schema", "$id", "id")}
