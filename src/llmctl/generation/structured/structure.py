"""The structure of an answer: a JSON schema, a regular expression, a list of choices, or a grammar.

llguidance enforces structures; docs/explanation/decisions.md gives the reasons. This module reads, checks and
translates a structure for llguidance before any model is loaded; `constraint` enforces it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from llmctl.config import Config, StructureSection
from llmctl.config.structure import MAX_BYTES, written_out
from llmctl.errors import UserError
from llmctl.generation.completion import Completion
from llmctl.generation.structured.schema_check import check_schema, schema_text, schemas_in

Kind = Literal["json_schema", "regex", "choices", "grammar"]
# One space, or a newline with indentation: enough for any JSON style, and never endless white space.
JSON_OPTIONS = {
    "whitespace_pattern": r"\n[ \t]{0,40}| ",
    "json_allowed_escapes": 'nrbtf\\"',  # with \uXXXX, a name could be written in two ways
}


@dataclass(frozen=True)
class Structure:
    """A checked structure.

    Attributes:
        kind: The configuration key of the structure.
        grammar: The structure in llguidance's format.
    """

    kind: Kind
    grammar: str

    @property
    def is_json(self) -> bool:
        """True if the answer is a JSON value."""
        return self.kind == "json_schema"

    def after(self, prelude: str) -> "Structure":
        """Return the structure of an answer that has something before this structure.

        Args:
            prelude: A grammar in Lark that refers to this structure as `@answer`.
        """
        inner = json.loads(self.grammar)["grammars"][0] if self.grammar.startswith("{") else None
        answer = {**(inner or {"lark_grammar": self.grammar}), "name": "answer"}
        return replace(self, grammar=json.dumps({"grammars": [{"lark_grammar": prelude}, answer]}))


def make_structure(section: StructureSection) -> Structure | None:
    """Return the structure of a configuration, or None.

    Raises:
        UserError: the structure is not valid, cannot be enforced exactly, or its file cannot be read.
    """
    section = written_out(section)
    if section.json_schema is not None:
        return _json_structure(schema_text(section.json_schema))
    if section.regex is not None:
        return _text_structure("regex", section.regex)
    if section.choices is not None:
        return _text_structure("choices", "|".join(_literally(choice) for choice in section.choices))
    if section.grammar is not None:
        return _text_structure("grammar", section.grammar)
    return None


def grammar_structure(grammar: str) -> Structure:
    """Return the structure of a grammar in Lark that llmctl wrote, whose schemas have been checked.

    Raises:
        UserError: llguidance refuses it.
    """
    from llguidance import LLMatcher

    structure = Structure("grammar", str(LLMatcher.grammar_from_lark(grammar)))
    if problem := _problem(structure.grammar):
        raise UserError(f"structure.grammar: {core_message(problem)}")
    return structure


def check_structure(config: Config) -> None:
    """Check that the structure of a configuration can be enforced, without loading the model.

    Raises:
        UserError: it cannot be enforced.
    """
    if make_structure(config.structure) is not None:
        refuse_combinations(config.generation.model_dump(exclude_none=True))


def refuse_combinations(arguments: Mapping[str, Any]) -> None:
    """Check that no setting conflicts with a structure.

    Args:
        arguments: Keys of the section `generation`.

    Raises:
        UserError: a setting conflicts; the message names its key.
    """
    reasons = {
        "num_beams": (arguments.get("num_beams", 1) > 1, "beams are extended before a structure can be checked"),
        "stop_strings": (bool(arguments.get("stop_strings")), "the answer could end in the middle of its structure"),
        "no_repeat_ngram_size": (
            bool(arguments.get("no_repeat_ngram_size")),
            'structured text repeats itself, as `", "` does',
        ),
    }
    for key, (is_set, reason) in reasons.items():
        if is_set:
            off = {"num_beams": "1", "stop_strings": "[]", "no_repeat_ngram_size": "0"}[key]
            raise UserError(
                f"generation.{key} cannot be combined with a structure: {reason}",
                hint=f"--set generation.{key}={off}",
            )


def parsed_value(completion: Completion) -> dict[str, Any]:
    """Return {"parsed": value} if the answer is a complete JSON value, else an empty dict."""
    if not completion.is_json:
        return {}
    try:
        return {"parsed": parse_json(completion.text)}
    except ValueError:
        return {}


def parse_json(text: str) -> Any:
    """Parse a finished answer whose structure is JSON.

    Raises:
        ValueError: a number is too large for Python, or the value is nested too deep.
    """

    def number(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            raise ValueError(f"the number {digits[:40]} is larger than 1.8e308")
        return value

    try:
        return json.loads(text, parse_float=number)
    except RecursionError as error:
        raise ValueError("the value is nested too deep") from error


# -- translation to llguidance's format


def _literally(text: str) -> str:
    """Return a regular expression that matches `text` alone."""
    return re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", text)


@lru_cache(maxsize=256)
def _json_structure(text: str) -> Structure:
    schema = check_schema(json.loads(text))
    structure = Structure("json_schema", _json_grammar(schema))
    if problem := _problem(structure.grammar):
        place, problem = _innermost(problem, schema)
        if problem.startswith("oneOf"):
            raise UserError(
                f"structure.json_schema: {place}/oneOf: a value could match two of these schemas",
                hint="use anyOf, or give each schema a property with a different const",
            )
        place += "/pattern" if problem.startswith("regex parse error") else ""
        raise UserError(f"structure.json_schema: {place}: {core_message(problem)}")
    return structure


def _json_grammar(schema: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    options: Any = JSON_OPTIONS
    return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))


@lru_cache(maxsize=256)
def _text_structure(kind: Kind, text: str) -> Structure:
    from llguidance import LLMatcher

    if len(text) > MAX_BYTES:
        raise UserError(f"structure.{kind}: it has {len(text)} characters, the limit is {MAX_BYTES}")
    if kind == "grammar":
        return grammar_structure(_with_checked_schemas(text))
    structure = Structure(kind, str(LLMatcher.grammar_from_regex(text)))
    if problem := _problem(structure.grammar):
        raise UserError(f"structure.{kind}: {core_message(problem)}")
    return structure


def _problem(grammar: str) -> str:
    """Return the problem that llguidance finds in a grammar, or an empty string."""
    from llguidance import LLMatcher, LLParserLimits

    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LLParserLimits(verbose_errors=False))
    return str(messages[0]) if is_error else ""


def _innermost(problem: str, schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return the place and message of a problem, for the innermost part of the schema that has the same problem."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    parts = [(place, part) for place, part in schemas_in(schema) if isinstance(part, dict)]
    kind = problem.partition(":")[0]
    for place, part in reversed(parts):
        inner = _problem(_json_grammar({**shared, **part}))
        if inner == problem or inner.startswith(f"{kind}:"):
            return place, inner
    return "#", problem


def core_message(problem: str) -> str:
    """Return the essential part of llguidance's message: `line 2, column 7: unknown name: "foo"`."""
    first, *rest = problem.strip().split("\n")
    regex = next((line.removeprefix("error: ") for line in rest if line.startswith("error: ")), None)
    if regex is not None:
        return regex
    place = re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", first)
    return f"line {place[1]}, column {place[2]}: {place[3]}" if place else first


def _with_checked_schemas(grammar: str) -> str:
    """Return a grammar whose `%json` schemas are checked and use the same white space as other schemas.

    Raises:
        UserError: a schema in it cannot be enforced, or it uses an unsupported feature.
    """
    if grammar.lstrip().startswith("{"):  # llguidance's JSON format, in which schemas would not be checked
        raise UserError("structure.grammar: a grammar must be Lark, not JSON", hint="for a schema, use --json-schema")
    if re.search(r"\[[^\]\n]*\btemperature\s*=", grammar):
        raise UserError("structure.grammar: a rule's temperature cannot be set", hint="set it for all: --temperature")
    parts, rest = [], grammar
    while (match := re.search(r"%json\s*(?=[{])", rest)) is not None:
        parts.append(rest[: match.end()])
        try:
            schema, end = json.JSONDecoder().raw_decode(rest[match.end() :])
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"structure.grammar: the schema after %json is not JSON: {error}") from error
        parts.append(json.dumps({**check_schema(schema), "x-guidance": JSON_OPTIONS}))
        rest = rest[match.end() + end :]
    return "".join([*parts, rest])
