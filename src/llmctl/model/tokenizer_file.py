"""tokenizer.json: the parts of it that llmctl reads itself, and what tokenizer_config.json says differently.

transformers rebuilds many tokenizers from the class that tokenizer_config.json or the model type names, and takes only
the vocabulary from tokenizer.json (convert_to_native_format in tokenization_utils_tokenizers.py). The file alone says
how the text that the model learned from was split.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmctl.model.checkpoint import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmctl.config.schema import TokenizerSection

FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
PROCESSOR_FILES = ("chat_template.json", "processor_config.json")
_SPACE = re.compile(r"\s*")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerChoice(NamedTuple):
    """A decision about a tokenizer: the parts of a plan's `Decision`."""

    key: str
    value: Any
    reason: str
    is_note: bool = False


def is_failure(error: BaseException) -> bool:
    """Return True for an exception that a damaged or foreign file causes in the tokenizers library or transformers.

    The library raises a bare Exception, and where its Rust code panics, a BaseException of a class without a module.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def is_read_from_file(folder: Path, section: "TokenizerSection", *, trust_remote_code: bool) -> bool:
    """Return True if the tokenizer is what tokenizer.json says, and no class takes part.

    Python code that the user trusts is an exception: it was asked for.
    """
    own_code = trust_remote_code and bool(read_settings(folder).get("auto_map"))
    return section.source == "file" and (folder / FILE).is_file() and not own_code


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Return the content of tokenizer_config.json; empty if there is none. Raise ModelError for invalid JSON."""
    file = folder / _CONFIG
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def processor_template(folder: Path) -> str | None:
    """Return the chat template in the files of a composite model's processor, which tokenizers do not read, or None."""
    for name in PROCESSOR_FILES:
        content = read_json(folder / name) if (folder / name).is_file() else None
        if isinstance(content, dict) and isinstance(content.get("chat_template"), str):
            return str(content["chat_template"])
    return None


def added_tokens(folder: Path) -> dict[int, dict[str, Any]] | None:
    """Return the added tokens by id: the file's as they are, then those that only tokenizer_config.json has.

    transformers prefers the flags in tokenizer_config.json, which decide whether a token takes the spaces around it.
    Without this argument it also reads tokenizer.json a second time with Python, which takes longer than everything
    else.

    Returns:
        None if transformers must find the tokens itself: special_tokens_map.json has a part of them, or the file has
        an unusual order.
    """
    settings = read_settings(folder).get("added_tokens_decoder")
    stored = _parts_before_model(folder / FILE).get("added_tokens")
    if settings is None and (folder / "special_tokens_map.json").is_file():
        return None
    try:
        tokens = {int(token["id"]): {name: token[name] for name in _FLAGS if name in token} for token in stored or ()}
        contents = {token["content"] for token in tokens.values()}
        others = [dict(token) for token in (settings or {}).values() if token["content"] not in contents]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # transformers says what is wrong
    first = max(tokens, default=-1) + 1
    return tokens | dict(enumerate(others, first)) if stored is not None else None


def _parts_before_model(file: Path) -> dict[str, Any]:
    """Return the parts of a tokenizer.json before its model, whose vocabulary is most of the file.

    The tokenizers library writes the model last. The result is empty if another order or a damaged file prevents this.
    """
    text = file.read_text(encoding="utf-8")
    decode = json.JSONDecoder().raw_decode
    parts: dict[str, Any] = {}
    try:
        position = _after("{", text, 0)
        while True:
            name, position = decode(text, position)
            position = _after(":", text, position)
            if name == "model":
                return parts
            parts[name], position = decode(text, position)
            position = _after(",", text, position)
    except (ValueError, IndexError, RecursionError):
        return {}


def _after(mark: str, text: str, position: int) -> int:
    """Return the position of the next JSON value after a punctuation mark. Raise ValueError if another one follows."""
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if text[position] != mark:
        raise ValueError(mark)
    return _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]


def end_choices(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> Iterator[TokenizerChoice]:
    """Yield a choice for each of `add_bos_token` and `add_eos_token` that tokenizer.json contradicts.

    transformers ignores both keys beside a tokenizer.json.
    """
    settings = read_settings(folder)
    ids = tokenizer("a")["input_ids"]
    actual = {"bos": ids[:1] == [tokenizer.bos_token_id], "eos": ids[-1:] == [tokenizer.eos_token_id]}
    for name, adds in actual.items():
        key, token = f"add_{name}_token", getattr(tokenizer, f"{name}_token")
        if token is not None and isinstance(settings.get(key), bool) and settings[key] != adds:
            stated = str(settings[key]).lower()
            reason = f"{FILE} {'adds' if adds else 'does not add'} {str(token)!r}; {_CONFIG} says {stated}"
            yield TokenizerChoice(key, adds, f"{reason} (tokenizer.source: class follows it)", is_note=True)


def end_arguments(folder: Path) -> dict[str, bool]:
    """Return `add_bos_token` and `add_eos_token` of tokenizer_config.json, to be passed with `tokenizer.source: class`.

    transformers reads them itself only where there is no tokenizer.json.
    """
    settings = read_settings(folder) if (folder / FILE).is_file() else {}
    return {name: settings[name] for name in ("add_bos_token", "add_eos_token") if isinstance(settings.get(name), bool)}
