"""The generation settings in a model's files, checked: what llmctl honours, and what it leaves out and why.

They are in generation_config.json, or in the config.json of older models. Nothing in them is trusted: a value that
transformers would refuse while it generates is left out here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmctl.model.generation_fields import FIELDS, Field, UnusableError, items_of

FILE = "generation_config.json"
_CUSTOM_CODE = "custom_generate"  # with trust_remote_code, transformers would run generate.py in it
LIMIT_BYTES = 1_000_000  # real files have a few kilobytes
_SHOWN_CHARACTERS = 60
_SHOWN_NAMES = 5
_TEXT_CONFIGS = ("text_config", "decoder", "generator")


@dataclass(frozen=True)
class LeftOut:
    """A setting of the model that is not used.

    Attributes:
        name: Its name, or the name of the file.
        value: Its value as text, shortened; empty for a file.
        reason: The reason.
        changes_text: True if answers can differ from those with the setting.
        file: The file that contains it.
    """

    name: str
    value: str
    reason: str
    changes_text: bool = True
    file: str = FILE


@dataclass(frozen=True)
class GenerationDefaults:
    """The generation settings of a model.

    Attributes:
        values: Checked values of honoured fields, by transformers' names.
        written: The texts of values that are written in another type: `"0.7"`.
        left_out: Settings that are not used.
        file: The file that they are from.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    file: str = FILE

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return tuple(self.values.get("eos_token_id", ()))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return tuple(self.values.get("stop_strings", ()))

    def source(self, name: str) -> str:
        """Return the origin of a value in words."""
        written = f", written as {self.written[name]}" if name in self.written else ""
        return f"the model's {self.file}{written}"


def read_generation_defaults(folder: Path, config: Mapping[str, Any]) -> GenerationDefaults:
    """Read the settings of the model in a folder. A file that cannot be read is left out.

    Args:
        config: Content of config.json.
    """
    file, content = folder / FILE, None
    if file.is_file():
        with file.open("rb") as stream:
            content = stream.read(LIMIT_BYTES + 1)
    defaults = parse_generation_defaults(content, config)
    if not (folder / _CUSTOM_CODE).is_dir():
        return defaults
    code = LeftOut(_CUSTOM_CODE, "", "llmctl does not run a repository's own generate", file=_CUSTOM_CODE)
    return replace(defaults, left_out=(*defaults.left_out, code))


def parse_generation_defaults(content: bytes | None, config: Mapping[str, Any]) -> GenerationDefaults:
    """Return the settings in the content of generation_config.json; None if the model has no such file.

    Without the file, transformers takes them from config.json.
    """
    if content is None:
        return _from_config(config)
    try:
        document = _document(content)
    except (UnusableError, RecursionError) as error:
        problem = LeftOut(FILE, "", str(error) if isinstance(error, UnusableError) else "nested too deeply")
        other = _from_config(config)
        return replace(other, left_out=(problem, *other.left_out))
    return check_generation_defaults(document, config)


def _document(content: bytes) -> dict[str, Any]:
    if len(content) > LIMIT_BYTES:
        raise UnusableError(f"the file has more than {LIMIT_BYTES} bytes")
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except ValueError:
        raise UnusableError("the file is not JSON") from None
    if not isinstance(document, dict):
        raise UnusableError("the file is not a JSON object")
    return document


def _from_config(config: Mapping[str, Any]) -> GenerationDefaults:
    nested: Mapping[str, Any] = next((config[name] for name in _TEXT_CONFIGS if isinstance(config.get(name), dict)), {})
    document = {**nested, **{name: value for name, value in config.items() if value is not None}}
    known = {name: value for name, value in document.items() if name in FIELDS}
    return check_generation_defaults(known, config, file="config.json")


def check_generation_defaults(
    document: Mapping[str, Any], config: Mapping[str, Any], *, file: str = FILE
) -> GenerationDefaults:
    """Return the checked settings of a document."""
    vocabulary = _vocabulary(config)
    values: dict[str, Any] = {}
    left_out: list[LeftOut] = []
    for name, value in document.items():
        known = FIELDS.get(name)
        if known is None or value is None or known.use == "no effect" or value in known.neutral:
            continue
        if known.parse is None:
            left_out.append(LeftOut(name, _shown(value), known.reason, known.changes_text))
            continue
        checked, problems = _checked(name, known, value, vocabulary)
        left_out += problems
        if checked is not None:
            values[name] = checked
    left_out += [*_drop_conflicts(values, vocabulary), *_unknown(document)]
    written = {name: _shown(document[name]) for name in values if _is_rewritten(document[name], values[name])}
    return GenerationDefaults(values, written, tuple(replace(one, file=file) for one in left_out), file)


def _unknown(document: Mapping[str, Any]) -> Iterator[LeftOut]:
    """Yield one entry for all settings that transformers does not have."""
    names = [_shown(name) for name, value in document.items() if name not in FIELDS and value is not None]
    if names:
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        yield LeftOut(
            "unknown settings", ", ".join(names[:_SHOWN_NAMES]) + more, "transformers has no such setting", False
        )


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    """Return the number of logits, or None if config.json does not state it."""
    nested = config.get("text_config")
    size = (nested if isinstance(nested, dict) else config).get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def _checked(name: str, known: Field, value: Any, vocabulary: int | None) -> tuple[Any, list[LeftOut]]:
    """Return the checked value (None if nothing of it can be used), and the problems."""
    assert known.parse is not None  # noqa: S101 (the caller checks)
    if not known.is_list:
        try:
            return known.parse(value, vocabulary), []
        except UnusableError as error:
            return None, [LeftOut(name, _shown(value), str(error))]
    checked, problems = [], []
    for item in items_of(value):
        try:
            checked.append(known.parse(item, vocabulary))
        except UnusableError as error:
            problems.append(LeftOut(name, _shown(item), str(error)))
    if len(problems) > 1:
        problems = [replace(problems[0], reason=f"{problems[0].reason}; {len(problems) - 1} more are left out")]
    distinct = list({repr(item): item for item in checked}.values())
    return distinct or None, problems


def _is_rewritten(value: Any, checked: Any) -> bool:
    """Return True if a value is of another type than expected, as `"0.7"` for a number."""
    return isinstance(value, str) and not isinstance(checked, str | list)


def _drop_conflicts(values: dict[str, Any], vocabulary: int | None) -> Iterator[LeftOut]:
    """Remove values that exclude others or every token."""
    if "min_new_tokens" in values and "min_length" in values:
        length = values.pop("min_length")
        yield LeftOut("min_length", _shown(length), "min_new_tokens replaces it, as in transformers", False)
    lists = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
    forbidden = {*values.get(lists[0], ()), *values.get(lists[1], ())}
    forbidden |= {sequence[0] for sequence in values.get(lists[2], ()) if len(sequence) == 1}
    if vocabulary is not None and len(forbidden) >= vocabulary:
        for name in lists:
            if name in values:
                yield LeftOut(name, _shown(values.pop(name)), "no token would be left")


def _shown(value: Any) -> str:
    """Return an untrusted value as short text on one line."""
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
