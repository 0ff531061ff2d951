"""The attention implementations that a transformers class supports, read from its source."""

import re
from functools import cache

from llmctl.transformers_compat import ATTENTION_FLAGS, FLASH_KERNELS


@cache
def supports_attention(source: str, architecture: str, implementation: str) -> bool | None:
    """Return True or False as a class and its bases say; None if the source does not show it.

    A class that lists the FlashAttention kernels it can use, without FlashAttention-2 among them, does not support it:
    transformers would fetch one of those from the Hub instead (`_check_and_adjust_attn_implementation`).

    Args:
        source: The source of the class's module.
        architecture: The name of the class.
        implementation: `sdpa` or `flash_attention_2`.
    """
    supported = _assigned(source, architecture, ATTENTION_FLAGS[implementation])
    kernels = _assigned(source, architecture, FLASH_KERNELS) if implementation == "flash_attention_2" else None
    if kernels not in (None, "None") and f'"{implementation}"' not in str(kernels):
        return False
    return None if supported is None else supported == "True"


def _assigned(source: str, name: str, attribute: str) -> str | None:
    """Return the expression that a class, or the first of its bases in the same module, assigns to an attribute."""
    found = re.search(rf"^class {re.escape(name)}\((.*)\):\n((?:(?!class ).*\n)*)", source, re.MULTILINE)
    if found is None:
        return None
    value = re.search(rf"^    {attribute}(?:: [^=\n]*)? = (\[[^\]]*\]|\S+)", found[2], re.MULTILINE)
    if value is not None:
        return value[1]
    inherited = (_assigned(source, base, attribute) for base in re.findall(r"\w+", found[1]) if base != name)
    return next((one for one in inherited if one is not None), None)
