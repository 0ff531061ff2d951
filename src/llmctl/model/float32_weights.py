"""The weights that transformers' classes keep in float32 in a model of half precision. Their source shows it."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from llmctl.transformers_compat import FLOAT16_EXCEPTIONS, FLOAT32_MODULES

# A cheap test of a source before it is parsed, which takes longer than all other planning.
_CANDIDATE = re.compile(rf"{FLOAT16_EXCEPTIONS}\w* = [\[{{]|\(.*dtype=torch\.float32|FloatTensor\(")
# Code that multiplies float32 by half precision: XLNet's projections, which are made in float32; DeepSeek V4's norms in
# 5.18, which stay in float32 and so return it.
_MIXED_PRODUCTS = re.compile(
    r"self\.q = nn\.Parameter\(torch\.FloatTensor"
    r"|class DeepseekV4RMSNorm\((?:(?!\nclass ).|\n)*return self\.weight \* hidden_states\.to\(input_dtype\)"
)
_WEIGHTS = ("Parameter", "Buffer", "register_buffer")


def float32_weights(source: str, *, dtype: str) -> re.Pattern[str] | None:
    """Return a pattern for the names of weights that stay in float32 in a model of `dtype`; None if there are none.

    These are the modules that a class lists for transformers' loader, and the parameters and modules that its
    `__init__` makes in float32: the loader keeps the dtype of an empty parameter.

    Args:
        source: The source of the model's classes.
        dtype: `float16` or `bfloat16`.
    """
    classes = _classes(source)
    patterns = dict.fromkeys(listed.replace("*", ".*") for one in classes.values() for listed in one.listed(dtype))
    for name, one in classes.items():
        patterns |= dict.fromkeys(rf"(?:^|\.){re.escape(module)}\." for module in one.modules)
        holders = "|".join(sorted(_holders(name, classes)))
        holder = rf"(?:{holders})\." if holders else r"\."
        own = (weight for weight in one.weights if holders or weight not in ("weight", "bias"))
        patterns |= dict.fromkeys(rf"(?:^|\.){holder}{re.escape(weight)}$" for weight in own)
    return re.compile("|".join(patterns)) if patterns else None


def modules_not_quantised(source: str) -> tuple[str, ...]:
    """Return the ends of the names of modules that transformers' classes keep out of every quantisation."""
    return tuple(dict.fromkeys(listed for one in _classes(source).values() for listed in one.float16_only))


def computes_only_in_float32(source: str) -> bool:
    """Return True if classes multiply float32 by half precision in a model of half precision, which torch refuses."""
    return _MIXED_PRODUCTS.search(source) is not None


@dataclass
class _Class:
    """The statements of a class about dtypes.

    Attributes:
        bases: Names of its base classes.
        strict: Patterns of names that stay in float32.
        float16_only: Patterns of names that stay in float32 in a float16 model, and are never quantised.
        weights: Names of its parameters and buffers that are made in float32.
        modules: Names of its modules that are made in float32.
        parts: The classes of its modules, by the names of the modules.
    """

    bases: tuple[str, ...]
    strict: tuple[str, ...] = ()
    float16_only: tuple[str, ...] = ()
    weights: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    parts: dict[str, set[str]] = field(default_factory=dict)

    def listed(self, dtype: str) -> tuple[str, ...]:
        """Return the patterns for a dtype."""
        return self.strict + (self.float16_only if dtype == "float16" else ())


@lru_cache(maxsize=8)
def _classes(source: str) -> dict[str, _Class]:
    if not _CANDIDATE.search(source):
        return {}
    return {node.name: _read_class(node) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _holders(name: str, classes: dict[str, _Class]) -> set[str]:
    """Return the names of the modules that are made from a class, or from one that inherits from it."""
    heirs = {name, *(other for other, one in classes.items() if name in one.bases)}
    return {part for one in classes.values() for part, made_from in one.parts.items() if heirs & made_from}


def _read_class(definition: ast.ClassDef) -> _Class:
    found = _Class(tuple(ast.unparse(base) for base in definition.bases))
    for node in definition.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == FLOAT32_MODULES:
                found.strict = tuple(_strings(node.value))
            elif node.targets[0].id == FLOAT16_EXCEPTIONS:
                found.float16_only = tuple(_strings(node.value))
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            _read_init(node, found)
    return found


def _read_init(definition: ast.FunctionDef, found: _Class) -> None:
    variables: set[str] = set()  # that hold float32 tensors
    for node in ast.walk(definition):
        if isinstance(node, ast.Assign):
            target, is_float32 = node.targets[0], _is_float32(node.value, variables)
            if isinstance(target, ast.Name) and is_float32:
                variables.add(target.id)
            elif isinstance(target, ast.Attribute):
                calls = [_called(call) for call in ast.walk(node.value) if isinstance(call, ast.Call)]
                found.parts.setdefault(target.attr, set()).update(calls)
                if is_float32:
                    (found.weights if {*calls} & {*_WEIGHTS} else found.modules).add(target.attr)
        elif isinstance(node, ast.Call) and _called(node) == "register_buffer" and _is_float32(node, variables):
            found.weights.update(list(_strings(node))[:1])


def _is_float32(value: ast.AST, variables: set[str]) -> bool:
    """Return True if an expression makes a tensor or a module in float32."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ("float32", "FloatTensor"))
        or (isinstance(node, ast.Name) and node.id in variables)
        for node in ast.walk(value)
    )


def _called(call: ast.Call) -> str:
    """Return the last part of the name of the function or class that is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def _strings(value: ast.AST) -> Iterator[str]:
    return (node.value for node in ast.walk(value) if isinstance(node, ast.Constant) and isinstance(node.value, str))
