"""YAML as a person means it: each value is read for the key that it belongs to, or is an error with its line.

PyYAML reads YAML 1.1, where `no` is a truth value, `010` is eight, `1:30` is ninety and `1e3` is text. Editors and most
other tools read YAML 1.2. Here a key that takes text gets the text that was written; a number or a truth value that the
two versions read differently is accepted only where it can have one meaning.
"""

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from llmctl.errors import Problem

_CORE = "tag:yaml.org,2002:"
_UNCLEAR = "!llmctl-unclear"  # a plain scalar that YAML 1.1 and 1.2 read differently
_DIGITS = "-+.0123456789"
# What YAML 1.1 has besides text, where 1.2 has another value or text: the first pattern that matches wins.
_RESOLVERS = (
    (f"{_CORE}null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (f"{_CORE}bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_UNCLEAR, r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", list("yYnNoO")),
    (f"{_CORE}int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+", list(_DIGITS)),
    (_UNCLEAR, r"[-+]?0[0-9_]+|[-+]?0b[01_]+|[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?", list(_DIGITS)),
    (_UNCLEAR, r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?", list(_DIGITS)),
    (_UNCLEAR, r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?", list(_DIGITS)),
    (f"{_CORE}float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list(_DIGITS)),
    (f"{_CORE}float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    (f"{_CORE}merge", r"<<", ["<"]),
)
_SCALARS = frozenset(f"{_CORE}{name}" for name in ("null", "bool", "int", "float", "str")) | {_UNCLEAR}
_NULL = f"{_CORE}null"
_GROUPED = re.compile(r"[-+]?[1-9][0-9_]*(?:\.[0-9_]*)?")  # 1_000: text in YAML 1.2, but a key for numbers takes none


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2, those that differ from 1.1 marked."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, Any]]] = {}  # noqa: RUF012 (as PyYAML defines it)


class _Dumper(yaml.SafeDumper):
    """A writer that quotes every text which either version of YAML would read as something else."""


for _tag, _pattern, _starts in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _starts)
    _Dumper.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _starts)


class ValueProblem(Exception):  # noqa: N818 (it becomes one of several problems)
    """A value that cannot be used, with the line where it is."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


@dataclass(frozen=True)
class Leaf:
    """A key of a file, its line, and the node of its value."""

    key: str
    line: int
    node: yaml.Node


def parse(text: str) -> yaml.Node | None:
    """Return the root of a YAML document; None for an empty one.

    Raises:
        ValueProblem: it is not YAML. The line is 0 if it is unknown.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        sign = error.character if isinstance(error.character, int) else ord(error.character)
        line = text.count("\n", 0, error.position) + 1
        escape = f"\\x{sign:02x}" if sign < 256 else f"\\u{sign:04x}"
        message = f"the control character U+{sign:04X} is in it: remove it, or write {escape} in double quotes"
        raise ValueProblem(line, message) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueProblem(mark.line + 1 if mark else 0, f"not YAML: {_reason(error)}") from None
    except RecursionError:
        raise ValueProblem(0, "not YAML that llmctl reads: it is nested too deeply") from None


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error)
    if "'\\t'" in problem:
        return "a tab cannot stand here; use spaces"
    return f"{error.context}, {problem}" if problem.startswith("but ") else problem


def is_mapping(node: yaml.Node) -> bool:
    """Return True for a mapping."""
    return isinstance(node, yaml.MappingNode)


def entries(node: yaml.MappingNode) -> Iterator[Leaf | Problem]:
    """Yield the entries of a mapping in order; a problem in place of a key that is given twice or is not text.

    The mappings of a merge key (`<<`) come first, and the mapping's own keys replace theirs. The problems name only
    the line and the key.
    """
    own: dict[str, Leaf] = {}
    merged: dict[str, Leaf] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            yield Problem(str(line), "", "a key must be text")
        elif key_node.tag == f"{_CORE}merge":
            yield from _merge(value, line, merged)
        elif key_node.value in own:
            yield Problem(str(line), key_node.value, f"given twice, first on line {own[key_node.value].line}")
        else:
            own[key_node.value] = Leaf(key_node.value, line, value)
    yield from {**merged, **own}.values()


def _merge(value: yaml.Node, line: int, merged: dict[str, Leaf]) -> Iterator[Problem]:
    """Add the entries of the mappings that a merge key names; the first of several has precedence."""
    for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
        if not isinstance(part, yaml.MappingNode):
            yield Problem(str(line), "<<", "must be a mapping, or a list of mappings")
            continue
        for entry in entries(part):
            if isinstance(entry, Problem):
                yield entry
            else:
                merged.setdefault(entry.key, entry)


def read(node: yaml.Node, wanted: Any, *, line: int, above: tuple[yaml.Node, ...] = ()) -> Any:
    """Return the value of a node for a key that takes values of the type `wanted`.

    Args:
        line: Line of the key.
        above: The nodes that contain this one, to recognise a value that contains itself.

    Raises:
        ValueProblem: it cannot be read, or can be read in two ways.
    """
    if node in above:
        raise ValueProblem(line, "it contains itself")
    kinds, inside = _kinds(wanted), (*above, node)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, kinds, line)
    if node.tag not in (f"{_CORE}seq", f"{_CORE}map"):
        raise ValueProblem(line, f"the tag {_short(node.tag)} means nothing here")
    if isinstance(node, yaml.SequenceNode):
        element = next((_first(get_args(kind)) for kind in kinds if get_origin(kind) is list), Any)
        return [read(part, element, line=part.start_mark.line + 1, above=inside) for part in node.value]
    assert isinstance(node, yaml.MappingNode)  # noqa: S101 (YAML has three kinds of nodes)
    return _mapping(node, kinds, inside)


def _mapping(node: yaml.MappingNode, kinds: tuple[Any, ...], above: tuple[yaml.Node, ...]) -> dict[Any, Any]:
    key_kind, value_kind = next((get_args(kind) for kind in kinds if get_origin(kind) is dict), (str, Any))
    fields = _fields(kinds)
    values: dict[Any, Any] = {}
    for entry in entries(node):
        if isinstance(entry, Problem):
            raise ValueProblem(int(entry.where), f"{entry.key}: {entry.message}" if entry.key else entry.message)
        key = int(entry.key) if int in _kinds(key_kind) and entry.key.isdecimal() else entry.key
        values[key] = read(entry.node, fields.get(entry.key, value_kind), line=entry.line, above=above)
    return values


def _fields(kinds: tuple[Any, ...]) -> dict[str, Any]:
    """Return the types of the keys of a section that is a value, such as an adapter, alone or in a list."""
    elements = [element for kind in kinds if get_origin(kind) is list for element in _kinds(_first(get_args(kind)))]
    models = [getattr(kind, "model_fields", {}) for kind in (*kinds, *elements)]
    return {name: field.annotation for model in models for name, field in model.items()}


def _scalar(node: yaml.ScalarNode, kinds: tuple[Any, ...], line: int) -> Any:
    """Return the value of a scalar for a key that takes values of these types."""
    if node.tag not in _SCALARS:
        raise ValueProblem(line, f"the tag {_short(node.tag)} means nothing here")
    is_text = bool({str, Path} & set(kinds)) and not {int, float, bool, Any} & set(kinds)
    if node.tag == f"{_CORE}str" or (is_text and node.tag != _NULL) or (node.tag == _UNCLEAR and _takes(kinds, node)):
        return _whole(node.value, line)
    if node.tag == _UNCLEAR and _GROUPED.fullmatch(node.value) and Any not in kinds:
        return node.value.replace("_", "")  # the schema makes a number of it
    if node.tag == _UNCLEAR:
        raise ValueProblem(line, _unclear(node.value))
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError):  # a number of thousands of digits
        raise ValueProblem(line, f"{node.value[:20]}… is not a number that can be read") from None
    finally:
        loader.dispose()


def _takes(kinds: tuple[Any, ...], node: yaml.ScalarNode) -> bool:
    """Return True if a word such as `no` or `1:30` has one meaning for these types: the schema decides which."""
    is_word = node.value[0].isalpha()
    if Any in kinds:
        return False
    return str in kinds or (is_word and not {int, float} & set(kinds)) or any(get_origin(k) is Literal for k in kinds)


def _unclear(text: str) -> str:
    if text[0].isalpha():
        return f"{text} is a truth value to some programs and text to others: write true or false, or put it in quotes"
    if re.fullmatch(r"[-+]?[0-9_]+", text) and "_" not in text:
        return f"{text} is octal to some programs and decimal to others: write {int(text)}, or put it in quotes"
    return f"{text} is a number or a date to some programs and text to others: write it in digits, or put it in quotes"


def _whole(text: str, line: int) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueProblem(line, "it has half of a character (a lone surrogate)") from None
    return text


def _kinds(wanted: Any) -> tuple[Any, ...]:
    """Return the members of a union, without annotations."""
    if get_origin(wanted) is Annotated:
        return _kinds(get_args(wanted)[0])
    if get_origin(wanted) in (Union, types.UnionType):
        return tuple(kind for part in get_args(wanted) for kind in _kinds(part))
    return (wanted,)


def _first(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else Any


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_CORE) if tag.startswith(_CORE) else tag


def dump(value: Any, **options: Any) -> str:
    """Return `value` as YAML that both versions read in the same way."""
    return str(yaml.dump(value, Dumper=_Dumper, **options))
