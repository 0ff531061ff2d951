"""Values written as Python literals, which are parsed and never executed."""

import ast
import json
import warnings
from typing import Any

_NAMES = {"true": True, "false": False, "null": None}


def python_literal(text: str) -> Any:
    """Return the value of a Python literal. The JSON names true, false and null are understood, too.

    Raises:
        ValueError: the text is not a literal, or JSON cannot represent its value.
    """
    value = _value(_parse(text))
    json.dumps(value, allow_nan=False)
    return value


def python_keywords(text: str) -> dict[str, Any]:
    """Return the values of keyword arguments: `city="Rome", days=3`.

    Raises:
        ValueError: the text has anything else, or JSON cannot represent a value.
    """
    call = _parse(f"f({text})")
    if not isinstance(call, ast.Call) or call.args or not all(word.arg for word in call.keywords):
        raise ValueError("a call has named arguments")
    values = {str(word.arg): _value(word.value) for word in call.keywords}
    json.dumps(values, allow_nan=False)
    return values


def _parse(text: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # for invalid escapes in the model's text
        try:
            return ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError("not a literal") from error


class _Names(ast.NodeTransformer):
    """Replaces JSON's names by Python's constants."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(_NAMES[node.id]), node) if node.id in _NAMES else node


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(_Names().visit(node))
    except (TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("not a literal") from error
