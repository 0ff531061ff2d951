"""The rows of a batch, read one at a time from JSON Lines, plain text, or CSV. A bad row has an error.

A row of JSON Lines is an object with `prompt` or `messages`, or a request of OpenAI's Batch API. An object may have
`images` beside its `prompt`, `id`, `seed`, `system`, and the keys of the sections `generation` and `structure` as
mappings. All other fields belong to the user and are passed through.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from llmctl.config.schema import GenerationSection
from llmctl.config.structure import is_grammar_text
from llmctl.errors import LlmctlError, UserError
from llmctl.generation.batch import openai_rows
from llmctl.generation.batch.prompt_template import PromptTemplate
from llmctl.generation.media import Media, with_pictures
from llmctl.text_files import encoding_of

Format = Literal["jsonl", "text", "csv", "tsv"]
FORMATS: tuple[Format, ...] = ("jsonl", "text", "csv", "tsv")
LINE_LIMIT_BYTES = 64 << 20
COUNT_LIMIT_BYTES = 1 << 30
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".csv": "csv", ".tsv": "tsv"
}  # fmt: skip
_ROW_KEYS = ("seed", "system", "generation", "structure")
_SETTINGS = {name: name for name in GenerationSection.model_fields}
_SETTINGS |= {"max_tokens": "max_new_tokens", "stop": "stop_strings"}


@dataclass(frozen=True)
class Row:
    """One row of the input.

    Attributes:
        number: Row number, starting at 1.
        line: The line of the file where the row begins.
        id: The user's id; by default, the row number.
        prompt: A text, or messages; empty in a bad row.
        media: The images of the prompt, with the hashes of their files.
        is_openai: True for a request of OpenAI's Batch API, whose fields the answer has too.
        settings: The row's `seed`, `system`, `generation` and `structure`.
        fields: All other fields, which belong to the user.
        error: The error of a bad row.
    """

    number: int
    line: int
    id: Any
    prompt: str | tuple[Mapping[str, Any], ...] = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: LlmctlError | None = None
    media: tuple[Media, ...] = ()
    is_openai: bool = False


def choose_format(path: Path | None, requested: str | None) -> Format:
    """Return the format of an input: the requested one, or by its suffix. Standard input (None) is JSON Lines.

    Raises:
        UserError: the requested format or the suffix is unknown.
    """
    if requested is not None:
        matching = next((known for known in FORMATS if known == requested.lower()), None)
        if matching is None:
            raise UserError(f"--input-format must be one of {', '.join(FORMATS)}; it is {requested!r}")
        return matching
    if path is None:
        return "jsonl"
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"{path}: the format is not known from the file name",
            hint=f"give --input-format, one of {', '.join(FORMATS)}",
        )
    return _SUFFIXES[path.suffix.lower()]


def read_rows(
    stream: BinaryIO, input_format: Format, *, column: str | None = None, template: PromptTemplate | None = None
) -> Iterator[Row]:
    """Yield the rows of an open binary file as they are read.

    Args:
        column: The column (CSV) or field (JSON Lines) of the prompt; by default, `prompt`.
        template: Makes the prompt from several columns or fields. A line of plain text is the column `text`.

    Raises:
        UserError: a CSV file has no such column, or a column was given for plain text.
    """
    if input_format == "text":
        if column is not None:
            raise UserError("--column names a column of CSV or a field of JSON Lines; plain text has none")
        return _numbered(_text_rows(stream, template))
    if input_format == "jsonl":
        return _numbered(_json_rows(stream, column, template))
    delimiter = "\t" if input_format == "tsv" else ","
    return _numbered(_csv_rows(stream, template or column or "prompt", delimiter))


def count_rows(path: Path, input_format: Format) -> int | None:
    """Return the number of rows of a file; None if counting them would take long."""
    if not path.is_file() or path.stat().st_size > COUNT_LIMIT_BYTES or input_format in ("csv", "tsv"):
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


Parsed = tuple[int, Any, Mapping[str, Any]]  # line, id, the other attributes of a Row


def _numbered(parsed: Iterable[Parsed]) -> Iterator[Row]:
    for number, (line, row_id, attributes) in enumerate(parsed, start=1):
        yield Row(number, line, number if row_id is None else row_id, **attributes)


def _bad_row(line: int, message: str, row_id: Any = None, fields: Mapping[str, Any] | None = None) -> Parsed:
    return line, row_id, {"error": UserError(message), "fields": fields or {}}


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Yield the number and text of each line that is not blank; None for one that is not UTF-8 or too long."""
    number = 0
    while raw := stream.readline(LINE_LIMIT_BYTES):
        number += 1
        whole = len(raw) < LINE_LIMIT_BYTES or raw.endswith(b"\n")
        while not whole:
            rest = stream.readline(LINE_LIMIT_BYTES)
            whole = not rest or rest.endswith(b"\n")
            raw = b"\xff"
        if number == 1:
            _refuse_wide(raw)
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, None
        else:
            if text.strip():
                yield number, text.rstrip("\r\n")


def _refuse_wide(start: bytes) -> None:
    """Raise UserError for UTF-16 and UTF-32, whose lines cannot be found in the bytes."""
    encoding = encoding_of(start)
    if encoding not in ("utf-8", "utf-8-sig"):
        name = encoding.upper()
        raise UserError(f"the input is {name} text; rows are read as UTF-8", hint=f"iconv -f {name} -t UTF-8 FILE")


_NO_TEXT = f"not UTF-8 text, or longer than {LINE_LIMIT_BYTES >> 20} MiB"


def _text_rows(stream: BinaryIO, template: PromptTemplate | None) -> Iterator[Parsed]:
    _check_columns(template, ["text"])
    for line, text in _lines(stream):
        if text is None:
            yield _bad_row(line, _NO_TEXT)
        else:
            yield line, None, {"prompt": text if template is None else template.render({"text": text})}


def _json_rows(stream: BinaryIO, column: str | None, template: PromptTemplate | None) -> Iterator[Parsed]:
    for line, value, problem in json_lines(stream):
        if problem is not None:
            yield _bad_row(line, problem)
        elif template is not None:
            yield _templated_object(value, template, line)
        elif column is None and isinstance(value, Mapping) and openai_rows.is_request(value):
            yield _openai_row(value, line)
        else:
            yield parse_object(value, line=line, column=column)


def _templated_object(value: Any, template: PromptTemplate, line: int) -> Parsed:
    """Parse an object whose fields a template joins to the prompt; they remain the user's."""
    if not isinstance(value, Mapping):
        return _bad_row(line, "not an object with fields")
    if "messages" in value:
        return _bad_row(line, "messages cannot be combined with --prompt-template", value.get("id"), value)
    try:
        prompt = template.render(value)
    except KeyError:
        missing = next(name for name in template.columns if value.get(name) is None)
        return _bad_row(line, f"no {missing}", value.get("id"), value)
    own = {name: value[name] for name in template.columns}
    parsed_line, row_id, attributes = parse_object({**value, "prompt": prompt}, line=line)
    return parsed_line, row_id, {**attributes, "fields": {**own, **attributes.get("fields", {})}}


def _openai_row(value: Mapping[str, Any], line: int) -> Parsed:
    """Parse a request of OpenAI's Batch API."""
    try:
        row = openai_rows.as_row(value)
    except ValueError as error:
        parsed = _bad_row(line, str(error), value["custom_id"])
    else:
        parsed = parse_object(row, line=line)
    return parsed[0], parsed[1], {**parsed[2], "is_openai": True}


def json_lines(stream: BinaryIO) -> Iterator[tuple[int, Any, str | None]]:
    """Yield the number, the value, and the problem (or None) of each line that is not blank."""
    for line, text in _lines(stream):
        if text is None:
            yield line, None, _NO_TEXT
            continue
        try:
            value = json.loads(text, parse_constant=_no_constant)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            yield line, None, "it has half of a character (a lone surrogate)"
        except (ValueError, RecursionError) as error:
            yield line, None, f"not JSON: {error}"
        else:
            yield line, value, None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_columns(template: PromptTemplate | None, header: Sequence[str]) -> None:
    """Raise UserError if a template names a column that the input does not have."""
    for name in () if template is None else template.columns:
        if name not in header:
            raise UserError(
                f"--prompt-template names {name!r}; the input has {', '.join(map(repr, header)) or 'no column'}",
                hint="name columns of the input in braces",
            )


def _csv_rows(stream: BinaryIO, prompt: str | PromptTemplate, delimiter: str) -> Iterator[Parsed]:
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT_BYTES))
    reader = csv.reader(_csv_lines(stream), delimiter=delimiter, strict=True)
    header = _header(reader, prompt)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield _bad_row(line, f"not CSV: {error}")
            continue
        if cells is None:
            return
        if cells:
            yield _csv_row(cells, header, prompt, line)


def _csv_row(cells: list[str], header: list[str], prompt: str | PromptTemplate, line: int) -> Parsed:
    fields: dict[str, Any] = dict(zip(header, cells, strict=False))
    columns = prompt.columns if isinstance(prompt, PromptTemplate) else (prompt,)
    row_id = (fields.pop("id", None) or None) if "id" not in columns else None
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return _bad_row(line, _NO_TEXT)
    if len(cells) != len(header):
        return _bad_row(line, f"{len(cells)} cells, but the header has {len(header)}", row_id, fields)
    text = prompt.render(fields) if isinstance(prompt, PromptTemplate) else fields.pop(prompt)
    if not text.strip():
        return _bad_row(line, f"{columns[0]} is empty", row_id, fields)
    return line, row_id, {"prompt": text, "fields": fields}


def _header(reader: Iterator[list[str]], prompt: str | PromptTemplate) -> list[str]:
    header = next(reader, [])
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the input has two columns {twice!r}", hint="give each column a different name")
    if isinstance(prompt, PromptTemplate):
        _check_columns(prompt, header)
    elif prompt not in header:
        raise UserError(
            f"the input has no column {prompt!r}; it has {', '.join(map(repr, header)) or 'none'}",
            hint="name the column of the prompt: --column NAME",
        )
    return header


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield lines with their newlines for the CSV reader; bytes that are not UTF-8 become surrogates."""
    for number, raw in enumerate(iter(lambda: stream.readline(LINE_LIMIT_BYTES), b"")):
        if not number:
            _refuse_wide(raw)
        yield raw.decode("utf-8" if number else "utf-8-sig", errors="surrogateescape")


def rows_of(values: Iterable[Any]) -> Iterator[Row]:
    """Yield rows from Python values: prompts, lists of messages, or mappings as in JSON Lines."""

    def parsed() -> Iterator[Parsed]:
        for number, value in enumerate(values, start=1):
            if isinstance(value, str):
                value = {"prompt": value}
            elif not isinstance(value, Mapping):
                value = {"messages": value}
            yield parse_object(value, line=number)

    return _numbered(parsed())


def parse_object(value: Any, *, line: int, column: str | None = None) -> Parsed:
    """Parse an object with `prompt` or `messages`, settings, and other fields."""
    if not isinstance(value, Mapping):
        return _bad_row(line, "not an object with a prompt or messages")
    fields = dict(value)
    row_id = fields.pop("id", None)
    if isinstance(row_id, dict | list):
        return _bad_row(line, "id must be a string or a number")
    prompt = fields.pop(column or "prompt", None)
    messages = fields.pop("messages", None) if column is None else None
    images = fields.pop("images", None)
    settings = {name: fields.pop(name) for name in _ROW_KEYS if fields.get(name) is not None}
    problem = (
        _prompt_problem(prompt, messages, column or "prompt")
        or images_problem(images, messages)
        or _settings_problem(settings, fields)
    )
    if problem:
        return _bad_row(line, problem, row_id, fields)
    chosen = prompt if messages is None else tuple(messages)
    if images:
        chosen = tuple(with_pictures(prompt, images))
    return line, row_id, {"prompt": chosen, "settings": settings, "fields": fields}


def _prompt_problem(prompt: Any, messages: Any, name: str) -> str | None:
    if prompt is not None and messages is not None:
        return f"both {name} and messages: give one of them"
    if messages is not None:
        if not isinstance(messages, list | tuple) or not messages:
            return "messages must be a list of objects with role and content"
        if not all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in messages):
            return "each message must be an object with role and content"
        return None
    if prompt is None:
        return f"no {name}" if name != "prompt" else "neither prompt nor messages"
    if not isinstance(prompt, str):
        return f"{name} must be a string, it is {type(prompt).__name__}"
    return None if prompt.strip() else f"{name} is empty"


def images_problem(images: Any, messages: Any) -> str | None:
    """Return the problem with the `images` of a row, or None."""
    if images is None:
        return None
    if messages is not None:
        return "images belong to a prompt; messages have them in their content: {type: image, image: PATH}"
    if not isinstance(images, list | tuple) or any(isinstance(one, Mapping | list | int | float) for one in images):
        return "images must be a list of paths"
    return None


def _settings_problem(settings: Mapping[str, Any], fields: Mapping[str, Any]) -> str | None:
    """Return the problem with settings, also if one is in a place where it would have no effect."""
    flat = next((name for name in fields if name in _SETTINGS), None)
    if flat is not None:
        return f"{flat} is a setting: write generation: {{{_SETTINGS[flat]}: …}}, or rename your field"
    seed, system = settings.get("seed", 0), settings.get("system", "")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        return f"seed must be a number from 0 to {2**32 - 1}, it is {seed!r}"
    if not isinstance(system, str):
        return "system must be a string"
    if not isinstance(settings.get("generation", {}), Mapping):
        return "generation must be an object with keys of that section"
    return _structure_problem(settings.get("structure", {}), fields)


def _structure_problem(structure: Any, fields: Mapping[str, Any]) -> str | None:
    """Return the problem with a structure. A row must not decide which files are read, so paths are refused."""
    if "json_schema" in fields:
        return "json_schema is a setting: write structure: {json_schema: …}, or rename your field"
    if not isinstance(structure, Mapping):
        return "structure must be an object with keys of that section"
    schema, grammar = structure.get("json_schema"), structure.get("grammar")
    if isinstance(schema, str):
        return "structure.json_schema of a row must be the schema itself, an object"
    if isinstance(grammar, str) and not is_grammar_text(grammar):
        return "structure.grammar of a row must be the grammar itself"
    return None
