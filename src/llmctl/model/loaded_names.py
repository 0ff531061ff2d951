"""The names that a checkpoint's tensors have in transformers' model.

Many checkpoints keep the names of their authors' code, and transformers renames them while it loads. Its table is
transformers/conversion_mapping.py, which is read here without importing it.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

from llmctl.model.modeling_source import transformers_file

_FILE = "conversion_mapping.py"


class _Rename(NamedTuple):
    """An entry of the table: a pattern, its replacement, and True if it merges or reshapes weights."""

    pattern: re.Pattern[str]
    target: str
    converts: bool


def renamer(keys: Iterable[str]) -> Callable[[str], str] | None:
    """Return a function from the name of a checkpoint's tensor to that of the model's weight; None if they are equal.

    Experts that are stored one by one keep their names.

    Args:
        keys: The class and the model types of a model. transformers' table has entries for both.
    """
    names = tuple(dict.fromkeys(keys))
    entries = [entry for key in names for entry in _entries(key)]
    entries += [entry for key in names for entry in _entries_of_base(key)]
    if not entries:
        return None
    entries.sort(key=lambda entry: entry.converts)  # transformers renames first

    def rename(name: str) -> str:
        for pattern, target, _ in entries:
            name = pattern.sub(target, name, count=1)
        return name

    return rename


def _entries_of_base(key: str) -> Iterator[_Rename]:
    """Yield the entries for the model inside a class with a head, which is its part `model`."""
    name, _, is_head = key.partition("For")
    for pattern, target, converts in _entries(f"{name}Model") if is_head else ():
        inside = pattern.pattern.removeprefix("^")
        yield _Rename(re.compile(rf"^model\.{inside}"), f"model.{target}", converts)


@cache
def _entries(key: str) -> tuple[_Rename, ...]:
    """Return the entries of transformers' table for a class or a model type."""
    source = transformers_file(_FILE)
    found: list[_Rename] = []
    for statement in _statements(source, key):
        for copied in re.findall(r'mapping\["(\w+)"\]\.copy\(\)', statement):
            found += _entries(copied)
        found += _read(statement)
    alias = re.search(rf'^    "{re.escape(key)}": "(\w+)",$', source, re.MULTILINE)
    return tuple(found) if found or alias is None else _entries(alias[1])


def _statements(source: str, key: str) -> Iterator[str]:
    """Yield the expressions that make the entry of a key."""
    escaped = re.escape(key)
    in_dict = rf'^ {{8}}"{escaped}": (\[.*\],$|\[\n(?:.*\n)*? {{8}}\],$)'
    later = rf'^ {{4}}mapping\["{escaped}"\] \+?= (.*\n(?: {{5,}}.*\n)*(?: {{4}}\].*\n)?)'
    for pattern in (in_dict, later):
        for entry in re.finditer(pattern, source, re.MULTILINE):
            yield entry[1].rstrip(",")


def _read(statement: str) -> Iterator[_Rename]:
    """Yield the renames among the transforms of an expression, and the converters that make one weight."""
    try:
        tree = ast.parse(statement.strip(), mode="eval")
    except SyntaxError:  # a form of the table that this module does not know
        return
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        made = ast.unparse(call.func)
        if made not in ("WeightRenaming", "WeightConverter") or "MergeModulelist" in ast.unparse(call):
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        given |= dict(zip(("source_patterns", "target_patterns"), call.args, strict=False))
        sources, targets = _strings(given.get("source_patterns")), _strings(given.get("target_patterns"))
        if len(targets) == 1:
            target, converts = targets[0].replace(r"\.", "."), made == "WeightConverter"
            yield from (_Rename(re.compile(source), target, converts) for source in sources if "*" not in source)


def _strings(value: ast.AST | None) -> list[str]:
    nodes = () if value is None else ast.walk(value)
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
