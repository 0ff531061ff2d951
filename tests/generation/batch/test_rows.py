"""The rows of a batch: every input format, and errors of single rows."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import UserError
from llmctl.generation.batch.prompt_template import parse_template
from llmctl.generation.batch.rows import Row, choose_format, count_rows, read_rows


def rows(text: str | bytes, kind: Any = "jsonl", **more: Any) -> list[Row]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(read_rows(io.BytesIO(data), kind, **more))


def complaint(line: str | bytes) -> str:
    [row] = rows(line)
    assert row.error is not None
    return row.error.message


def test_a_row_has_a_prompt_or_messages_settings_and_other_fields() -> None:
    first, second = rows(
        '{"prompt": "a", "id": "x", "seed": 3, "generation": {"top_k": 4}, "label": 1}\r\n'
        "\n"
        '{"messages": [{"role": "user", "content": "b"}], "system": "be kind"}'
    )
    assert (first.number, first.line, first.id, first.prompt) == (1, 1, "x", "a")
    assert first.settings == {"seed": 3, "generation": {"top_k": 4}}
    assert first.fields == {"label": 1}
    assert (second.number, second.line, second.id) == (2, 3, 2)
    assert second.prompt == ({"role": "user", "content": "b"},)
    assert second.settings == {"system": "be kind"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "not an object"),
        ('{"id": 1}', "neither prompt nor messages"),
        ('{"prompt": "a", "messages": []}', "both prompt and messages"),
        ('{"prompt": ["a"]}', "prompt must be a string, it is list"),
        ('{"prompt": "  "}', "prompt is empty"),
        ('{"messages": []}', "messages must be a list"),
        ('{"messages": [{"content": "a"}]}', "each message must"),
        ('{"prompt": "a", "seed": -1}', "seed must be a number from 0"),
        ('{"prompt": "a", "seed": true}', "seed must be a number from 0"),
        ('{"prompt": "a", "generation": 3}', "generation must be an object"),
        ('{"prompt": "a", "id": {}}', "id must be"),
        ('{"prompt": "a", "temperature": 1}', "write generation: {temperature: …}"),
        ('{"prompt": "a", "max_tokens": 1}', "write generation: {max_new_tokens: …}"),
        ('{"prompt": "a", "x": NaN}', "NaN is not JSON"),
        ('{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_row_says_what_is_wrong(line: str | bytes, said: str) -> None:
    assert said in complaint(line)


def test_a_bad_row_affects_no_other_and_has_its_line() -> None:
    first, bad, last = rows('{"prompt": "a"}\n\n{oops\n{"prompt": "b"}\n')
    assert (first.error, last.error) == (None, None)
    assert (bad.line, bad.number, last.number) == (3, 2, 3)


def test_a_line_that_is_too_long_is_skipped_without_being_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmctl.generation.batch.rows.LINE_LIMIT_BYTES", 40)
    long, good = rows('{"prompt": "' + "a" * 200 + '"}\n{"prompt": "b"}\n')
    assert long.error is not None
    assert (good.prompt, good.line) == ("b", 2)


def test_lines_of_text() -> None:
    assert [row.prompt for row in rows("\ufefffirst\n\n second \r\n", "text")] == ["first", " second "]


def test_a_table_with_quotes_and_lines_inside_cells() -> None:
    table = 'id,question,label\nx,"a, ""b""\nc",1\n\n,d,2\n'
    first, second = rows(table, "csv", column="question")
    assert (first.id, first.prompt, first.fields, first.line) == ("x", 'a, "b"\nc', {"label": "1"}, 2)
    assert (second.id, second.prompt, second.line) == (2, "d", 5)
    assert [row.prompt for row in rows("prompt\tx\na\t1\n", "tsv")] == ["a"]


def test_bad_lines_of_a_table() -> None:
    many, empty, bad, good = rows(b"prompt,x\na,1,2\n,1\n\xff,1\nb,1\n", "csv")
    assert "3 cells, but the header has 2" in str(many.error)
    assert "prompt is empty" in str(empty.error)
    assert "not UTF-8" in str(bad.error)
    assert good.prompt == "b"


def test_a_table_without_the_column_is_refused_as_a_whole() -> None:
    with pytest.raises(UserError, match="no column 'prompt'; it has 'a', 'b'"):
        rows("a,b\n1,2\n", "csv")
    with pytest.raises(UserError, match="two columns 'a'"):
        rows("a,a\n1,2\n", "csv", column="a")


def test_the_prompt_field_of_json_lines_may_have_another_name() -> None:
    [row] = rows('{"question": "a", "prompt": "mine"}', column="question")
    assert (row.prompt, row.fields) == ("a", {"prompt": "mine"})


def test_the_format_by_name() -> None:
    assert choose_format(Path("a.JSONL"), None) == "jsonl"
    assert choose_format(Path("a.txt"), None) == "text"
    assert choose_format(Path("a.jsonl"), "csv") == "csv"
    assert choose_format(None, None) == "jsonl"
    with pytest.raises(UserError, match="the format is not known"):
        choose_format(Path("a.data"), None)
    with pytest.raises(UserError, match="must be one of jsonl, text, csv, tsv; it is 'xml'"):
        choose_format(None, "xml")


def test_rows_are_read_as_they_are_needed() -> None:
    stream = io.BytesIO(b'{"prompt": "a"}\n' * 100_000)
    next(read_rows(stream, "jsonl"))
    assert stream.tell() < 1000


def test_rows_are_counted_if_that_is_quick(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}')
    assert count_rows(file, "jsonl") == 2
    assert count_rows(file, "csv") is None


def template(text: str) -> Any:
    return {"template": parse_template(text)}


def test_a_template_makes_the_prompt_of_several_columns() -> None:
    [row] = rows("id,text,n\n7,{a} b,2\n", "csv", **template("{{{n}}} {text}!"))
    assert (row.id, row.prompt, row.fields) == ("7", "{2} {a} b!", {"text": "{a} b", "n": "2"})
    [row] = rows('{"a": [1], "prompt": "p", "seed": 3}', **template("{a} {prompt}"))
    assert (row.prompt, row.fields, row.settings) == ("[1] p", {"a": [1], "prompt": "p"}, {"seed": 3})
    [row] = rows("one\n", "text", **template("Say {text}"))
    assert row.prompt == "Say one"


def test_a_template_that_the_input_cannot_fill_is_an_error() -> None:
    first, second = rows('{"b": 1}\n{"a": null}', **template("{a}"))
    assert first.error is not None
    assert second.error is not None
    [row] = rows('{"a": "x", "messages": []}', **template("{a}"))
    assert row.error is not None
    for kind in ("csv", "text"):
        with pytest.raises(UserError, match="'nope'"):
            rows("a,b\n1,2\n", kind, **template("{nope}"))


@pytest.mark.parametrize("text", ["no column", "{}", "{a:>9}", "{a!r}", "{a", "a}"])
def test_a_template_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--prompt-template"):
        parse_template(text)


def request(**changes: Any) -> str:
    body = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], **changes.pop("body", {})}
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **changes})


def test_a_request_of_the_batch_api_is_a_row() -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    sampling = {"temperature": 0.5, "max_tokens": 7, "stop": "END", "seed": 3, "logprobs": True, "top_logprobs": 2}
    [row] = rows(request(body={**sampling, "response_format": form, "n": 1, "stream": False, "user": None}))
    assert row.error is None
    assert (row.id, row.is_openai, row.prompt) == ("a", True, ({"role": "user", "content": "Hi"},))
    assert row.settings == {
        "seed": 3,
        "generation": {"temperature": 0.5, "max_new_tokens": 7, "stop_strings": ["END"], "logprobs": 2},
        "structure": {"json_schema": schema},
    }
    [plain] = rows(request())
    assert (plain.settings, plain.fields) == ({"generation": {}}, {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "/v1/embeddings"}, "/v1/embeddings"),
        ({"method": "GET"}, "GET"),
        ({"body": {"tools": [{}]}}, "body.tools"),
        ({"body": {"n": 2}}, "body.n"),
        ({"body": {"max_tokens": 1, "max_completion_tokens": 2}}, "differ"),
        ({"body": {"top_logprobs": 2}}, "logprobs"),
        ({"body": {"response_format": {"type": "json_schema"}}}, "response_format"),
        ({"body": {"messages": None}}, "messages"),
    ],
)
def test_a_request_that_a_batch_does_not_answer_is_an_error_of_its_row(changes: dict[str, Any], words: str) -> None:
    [row] = rows(request(**changes))
    assert row.error is not None
    assert words in row.error.message
    assert (row.id, row.is_openai) == ("a", True)
