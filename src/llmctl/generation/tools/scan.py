"""Matching of the fixed parts of tool calls in text that may still grow.

A fixed part is a text in which white space matches any white space, or none, and in which `ID`, `INDEX`, `TYPE` and
`NAME` stand for values that the model chooses.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from llmctl.generation.marks import ID, INDEX, NAME, TYPE

_VALUE = re.compile(r"[\w.-]{1,64}")
# what is not yet valid at the end of a JSON text: the beginning of a fraction, an exponent, or a name
_CUT_OFF = re.compile(r"\s*|-|\.|[eE][+-]?|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?")


class IncompleteError(Exception):
    """More text is needed to decide."""


class NotACallError(ValueError):
    """The text is not a call."""


def skip(text: str, at: int, part: str) -> int:
    """Return the position after a fixed part that begins at `at`.

    Raises:
        IncompleteError: the text ends within the part.
        NotACallError: the text is different.
    """
    for character in part:
        if character.isspace():
            continue
        at = _after_space(text, at)
        if at == len(text):
            raise IncompleteError
        if character in (ID, INDEX, TYPE, NAME):
            value = _VALUE.match(text, at)
            if value is None:
                raise NotACallError
            at = value.end()
        elif text[at] != character:
            raise NotACallError
        else:
            at += 1
    return at


def skip_any(text: str, at: int, parts: Sequence[str]) -> int:
    """Return the position after the first of several fixed parts that matches. Errors are those of `skip`."""
    is_incomplete = False
    for part in parts:
        try:
            return skip(text, at, part)
        except IncompleteError:
            is_incomplete = True
        except NotACallError:
            continue
    raise IncompleteError if is_incomplete else NotACallError


def matches(text: str, at: int, part: str) -> bool:
    """Return True if a fixed part begins at `at`. Raise IncompleteError if more text is needed."""
    try:
        skip(text, at, part)
    except NotACallError:
        return False
    return True


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def json_value(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value at `at`, and the position after it.

    Raises:
        IncompleteError, NotACallError: as in `skip`.
    """
    at = _after_space(text, at)
    try:
        value, end = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise (IncompleteError if _is_cut_off(text, error) else NotACallError) from error
    except RecursionError as error:
        raise NotACallError from error
    return value, end


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Return True if the error is at the end of the text, so that more text could mend it."""
    if "\\u" in error.msg:  # an escape of six characters
        return len(text) - error.pos < 6
    return error.msg.startswith("Unterminated string") or _CUT_OFF.fullmatch(text, error.pos) is not None


def _no_constant(name: str) -> Any:
    raise NotACallError(f"{name} is not JSON")
