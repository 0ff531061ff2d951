"""Release numbers of versions, and ranges with >=, >, <=, < and ==."""

import re

_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_CLAUSE = re.compile(r"\s*(>=|<=|==|<|>)\s*(\d+(?:\.\d+)*)\s*")


def release(version: str) -> tuple[int, ...]:
    """Return the release numbers of a version, if any, without trailing zeros: `2.13.0+cpu` is (2, 13)."""
    match = _RELEASE.match(version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def is_inside(version: str, wanted: str) -> bool:
    """Return True if a version is in a range such as `>=5.18,<6`. Clauses of other forms are ignored."""
    numbers = release(version)
    for clause in wanted.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            continue
        bound = release(match[2])
        kept = {
            ">=": numbers >= bound,
            ">": numbers > bound,
            "<=": numbers <= bound,
            "<": numbers < bound,
            "==": numbers == bound,
        }
        if not kept[match[1]]:
            return False
    return True


def lower_first(wanted: str) -> str:
    """Return a range with its lower bound first, the usual order: `<6,>=5.18` becomes `>=5.18,<6`."""
    return ",".join(sorted((clause.strip() for clause in wanted.split(",")), reverse=True))


def without_local(version: str) -> str:
    """Return a version without the part after the plus: `2.13.0+cpu` becomes `2.13.0`."""
    return version.partition("+")[0]
