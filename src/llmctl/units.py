"""Sizes in bytes as text: formatted for people and parsed from a configuration."""

import re

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)$", re.IGNORECASE)
_FACTORS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_FACTORS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def format_bytes(count: int) -> str:
    """Return a number of bytes with three digits in decimal units, as the Hub shows them: `269 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def format_count(count: int) -> str:
    """Return a number of parameters with three digits: `8.03 billion`, `135 million`."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if count >= 0.9995 * size:
            value = count / size
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:,.{digits}f} {name}"
    return f"{count:,}"


def parse_bytes(size: int | str) -> int:
    """Return `20GiB`, `500MB` or a plain number as bytes.

    Raises:
        ValueError: the text is not a size, or the number is negative.
    """
    if isinstance(size, int) or size.isdigit():
        if int(size) < 0:
            raise ValueError(f"{size} is negative")
        return int(size)
    match = _SIZE.match(size)
    if not match:
        raise ValueError(f"{size!r} is not a size such as 20GiB or 500MB")
    return int(float(match[1]) * _FACTORS[match[2].lower()])
