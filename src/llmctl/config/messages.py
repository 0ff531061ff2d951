"""The messages for unknown keys and invalid values, with the name or value that was probably meant."""

import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args

from llmctl.config.schema import all_keys, field_of, sections
from llmctl.synonyms import find_synonym

_GGUF_TYPE = re.compile(r"(?:ud-)?i?q([1-8])_")  # q4_k_m, iq2_xs
_BACKENDS = ("bitsandbytes", "bnb")
_STORED_FORMATS = ("awq", "gptq", "fp8", "gguf", "compressed-tensors", "compressed_tensors", "mxfp4", "hqq", "aqlm")


def unknown_key(key: str) -> str:
    """Return a message for an unknown key, with the one of the same meaning or the most similar one."""
    if synonym := find_synonym(key):
        return f"unknown key; instead: {synonym.advice}" if synonym.advice else _did_you_mean(synonym.instead())
    section, _, inner = key.partition(".")
    names = sections()
    leaves = {known.rpartition(".")[2]: known for known in reversed(all_keys())}
    if not inner and key in leaves:  # a key without its section takes precedence over a similar section
        return _did_you_mean(leaves[key])
    if not inner:
        close = difflib.get_close_matches(key, names, n=1)
        same = difflib.get_close_matches(key, leaves, n=1, cutoff=0.7)
        nearest = difflib.get_close_matches(key, [*close, *same], n=1)
        if nearest and nearest == close:
            return f"unknown section; did you mean {close[0]}?"
        if nearest:
            return _did_you_mean(leaves[same[0]])
        return f"unknown section or key; the sections are {', '.join(names)}"
    bare = inner.removeprefix("bnb_4bit_").removeprefix("llm_int8_")
    candidates = list(names[section].model_fields) if section in names else []
    for text in (inner, bare):
        if matches := difflib.get_close_matches(text, candidates, n=1, cutoff=0.6):
            return _did_you_mean(f"{section}.{matches[0]}")
    if matches := difflib.get_close_matches(key, all_keys(), n=1, cutoff=0.7):
        return _did_you_mean(matches[0])
    if inner in leaves:
        return _did_you_mean(leaves[inner])
    return f"unknown key; {section} has {', '.join(candidates)}" if candidates else "unknown section"


def _did_you_mean(name: str) -> str:
    return f"unknown key; did you mean {name}?"


def invalid_value(key: str, item: Any, value: Any) -> str:
    """Return a message for a value that the schema refuses."""
    context = item.get("ctx", {})
    error_type = item["type"]
    bounds = {
        "greater_than_equal": f"must be at least {_number(context.get('ge'))}",
        "greater_than": f"must be greater than {_number(context.get('gt'))}",
        "less_than_equal": f"must be at most {_number(context.get('le'))}",
        "less_than": f"must be less than {_number(context.get('lt'))}",
    }
    shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
    if error_type in bounds:
        return f"{bounds[error_type]}, it is {shown}"
    if key == "quantization.bits":
        return f"must be 8bit, 4bit or none, it is {shown}{_bits_advice(str(value))}"
    if error_type == "literal_error":
        expected = [str(option) for option in _literal_values(key)]
        close = difflib.get_close_matches(str(value), expected, n=1)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        return f"must be one of {', '.join(expected)}, it is {shown}{suggestion}"
    if key == "vllm.extra" and error_type == "value_error":  # its values may be secrets
        return str(context.get("error", item["msg"]))
    if error_type == "value_error":
        return f"{context.get('error', item['msg'])}; it is {shown}"
    plain = item["msg"].removeprefix("Input should be ").split(", unable")[0]
    return f"must be {plain}, it is {shown}"


def _bits_advice(value: str) -> str:
    """Return what another tool's name of a quantisation becomes here."""
    value = value.lower()
    if match := _GGUF_TYPE.match(value):
        return f"; llmctl does not read GGUF, and {'8bit' if int(match[1]) > 5 else '4bit'} is nearest to this type"
    if value in _BACKENDS:
        return "; for that implementation: quantization.backend: bitsandbytes"
    return "; a model in that format needs no flag: name the model" if value in _STORED_FORMATS else ""


def _number(value: Any) -> str:
    """Return a bound without a needless `.0`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _literal_values(key: str) -> list[Any]:
    """Return the values of the Literal in a key's annotation."""

    def walk(annotation: Any) -> Iterator[Any]:
        for part in get_args(annotation):
            if isinstance(part, str | int):
                yield part
            else:
                yield from walk(part)

    return list(walk(field_of(key).annotation))
