"""Text as editors and shells write it: UTF-8 with and without a mark, UTF-16, and what is no text."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.config import ChatSection
from llmctl.config.structure import StructureSection, written_out
from llmctl.errors import UserError
from llmctl.generation.batch.rows import read_rows
from llmctl.generation.prompt import template_text
from llmctl.text_files import NotTextError, as_utf8, decode

Write = Callable[[str], Path]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_mark_is_no_part_of_the_text_and_line_ends_are_kept(encoding: str) -> None:
    assert decode("h\u00e9llo\r\n\U0001f600".encode(encoding)) == "h\u00e9llo\r\n\U0001f600"
    assert decode("".encode(encoding)) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"h\xe9llo", "0xe9 at offset 1"),
        ("hello".encode("utf-16-le"), "null bytes"),
        (b"\xff\xfeh", "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
    ],
)
def test_what_is_no_text_says_why(data: bytes, words: str) -> None:
    with pytest.raises(NotTextError, match=words):
        decode(data)


def test_bytes_of_an_argument_are_utf_8_in_every_locale() -> None:
    assert as_utf8("h\udcc3\udca9llo") == as_utf8("h\u00e9llo") == "h\u00e9llo"
    with pytest.raises(NotTextError):
        as_utf8("h\udcff")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_schemas_grammars_and_templates_are_read_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    def written(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(text.encode(encoding))
        return str(tmp_path / name)

    schema = StructureSection(json_schema=written("schema.json", '{"enum":\r\n ["\u00e9"]}'))
    assert written_out(schema).json_schema == {"enum": ["\u00e9"]}
    grammar = StructureSection(grammar=written("grammar.lark", 'start: "\u00e9"'))
    assert written_out(grammar).grammar == 'start: "\u00e9"'
    template = ChatSection(template=written("template.jinja", "{{ messages }}\u00e9"))
    assert template_text(template) == "{{ messages }}\u00e9"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("form", "text"),
    [("jsonl", '{"prompt": "h\u00e9"}\r\n'), ("csv", "prompt\r\nh\u00e9\r\n"), ("text", "h\u00e9\r\n")],
)
def test_rows_are_read_with_a_mark_and_with_line_ends_of_windows(encoding: str, form: str, text: str) -> None:
    assert [row.prompt for row in read_rows(io.BytesIO(text.encode(encoding)), form)] == ["h\u00e9"]  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "text"])
def test_rows_in_utf_16_are_refused_once_with_the_command_that_converts_them(encoding: str, form: str) -> None:
    stream = io.BytesIO('{"prompt": "x"}\n{"prompt": "y"}\n'.encode(encoding))
    with pytest.raises(UserError) as error:
        list(read_rows(stream, form))  # type: ignore[arg-type]
    assert f"iconv -f {encoding.upper()}" in str(error.value.hint)
