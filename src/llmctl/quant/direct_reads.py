"""Weights that transformers' classes read from outside of the module that holds them. Their source shows it."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

# Beginnings of the names of methods that initialise, tie or resize weights.
_NEVER_IN_A_PASS = (
    "_init", "__init__", "init_", "reset_", "tie_", "_tie", "get_", "set_", "resize", "_get_resized", "_bnb",
)  # fmt: skip
_CANDIDATE = re.compile(r"""(?<!["'\w.])[a-z_]\w*(?:\.\w+)+\.weight\b(?!\.)""")  # in code, not in a string
_FACTS = ("dtype", "device", "shape", "ndim", "size", "dim", "numel", "requires_grad")


def weights_read_directly(source: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ends of the names of modules whose weight other code reads, instead of calling the module.

    For example, `dt_proj` for `self.dt_proj.weight @ x`. Such a weight has to keep its layout. Reads of its dtype or
    its shape do not count, nor do branches that only training or another configuration takes.

    Args:
        source: The source of the model's classes.
        config: The configuration of the model, the values of which the conditions of branches can name.
    """
    if not _CANDIDATE.search(source):  # parsing takes longer than all other planning
        return ()
    found: dict[str, None] = {}
    for definition in ast.walk(ast.parse(source)):
        if isinstance(definition, ast.FunctionDef) and not definition.name.startswith(_NEVER_IN_A_PASS):
            found |= dict.fromkeys(chain.from_iterable(_weight_reads(one, config) for one in definition.body))
    return tuple(found)


def _weight_reads(node: ast.AST, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield `attention.output` for a read of `block.attention.output.weight`."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef) or (isinstance(node, ast.Attribute) and node.attr in _FACTS):
        return
    if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.value, ast.Attribute):
        yield ast.unparse(node.value).partition(".")[2]
        return
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and _is_false(node.test, config):
        children = node.orelse
    for child in children:
        yield from _weight_reads(child, config)


def _is_false(test: ast.AST, config: Mapping[str, Any]) -> bool:
    """Return True if a condition on `self` is certainly false in evaluation mode with this configuration."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(_is_false(part, config) for part in test.values)
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Gt) and isinstance(test.left, ast.Attribute):
        limit, value = test.comparators[0], config.get(test.left.attr)
        known = limit.value if isinstance(limit, ast.Constant) else None
        return isinstance(known, int) and isinstance(value, int) and value <= known
    if isinstance(test, ast.Attribute):
        return bool(test.attr == "training" or config.get(test.attr) is False)
    return False
