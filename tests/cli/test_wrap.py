"""Word wrap of streamed text, and tables that fit the terminal."""

import io
import sys
from collections.abc import Sequence

import pytest

from llmctl.cli._markdown import MarkdownStream
from llmctl.cli._render import Output
from llmctl.cli._table import table_lines
from llmctl.cli._text_input import typed_text
from llmctl.cli._wrap import WordWrap, text_width, wrapped

PROSE = (
    "The air is 78% nitrogen, and https://example.org/a/path/that/is/longer/than/any/line?x=1 says so.\n"
    "- an item of a list that is too long for one line\n- 二つ目の項目は、とても長い文章です。「括弧」もあります。\n"
    "12. another item that needs two lines\n  an indented line that is also too long\n\n"
    "Families 👩‍👩‍👧 and 한국어 문장은 공백에서 나뉩니다.\n"
)
CODE = "```python\nvalue = [one, two, three, four, five, six, seven]\n```\nand prose after the code again\n"


def streamed(text: str, *, width: int, size: int) -> str:
    wrap = WordWrap(lambda: width)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return "".join(part.text for part in [*(part for piece in pieces for part in wrap.add(piece)), *wrap.flush()])


@pytest.mark.parametrize("width", [20, 31, 80])
def test_lines_end_between_words_and_do_not_depend_on_how_the_text_arrives(width: int) -> None:
    shown = streamed(PROSE, width=width, size=len(PROSE))
    assert {streamed(PROSE, width=width, size=size) for size in (1, 2, 3, 7)} == {shown}
    assert "".join(shown.split()) == "".join(PROSE.split())
    words = [word for word in PROSE.split() if word.isascii()]
    assert [word for word in shown.split() if word.isascii()] == words, "no word is broken"
    fitting = [line for line in shown.split("\n") if "https:" not in line]
    assert max(text_width(line) for line in fitting) <= width


def test_following_lines_are_indented_and_no_line_begins_with_closing_punctuation() -> None:
    lines = streamed(PROSE, width=20, size=5).split("\n")
    assert lines[lines.index("- an item of a list") + 1] == "  that is too long"
    assert lines[lines.index("12. another item") + 1] == "    that needs two"
    assert not [line for line in lines if line.strip().startswith(("、", "。", "」"))]


def test_only_a_word_that_may_still_move_is_held_back() -> None:
    wrap = WordWrap(lambda: 20)
    assert "".join(part.text for part in wrap.add("nitr")) == "nitr", "at the start of a line it cannot move"
    assert "".join(part.text for part in wrap.add("ogen is in the a")) == "ogen is in the"
    assert "".join(part.text for part in wrap.add("ir. ")) == "\nair."


def test_code_between_fences_keeps_its_lines() -> None:
    shown = streamed(CODE, width=20, size=4)
    assert "value = [one, two, three, four, five, six, seven]\n```\n" in shown
    assert shown.endswith("and prose after the\ncode again\n")


def test_after_a_change_of_the_width_lines_end_at_the_new_one() -> None:
    columns = 40
    wrap = WordWrap(lambda: columns)
    before = "".join(part.text for part in wrap.add("one two three four five six seven "))
    columns = 20
    after = "".join(part.text for part in [*wrap.add("eight nine ten eleven twelve thirteen"), *wrap.flush()])
    assert before == "one two three four five six seven"
    assert after.split("\n")[1:] == ["nine ten eleven", "twelve thirteen"]


def test_the_command_of_a_hint_stays_in_one_line() -> None:
    assert wrapped("it is not here: llmctl download org/name --revision main", 30) == [
        "it is not here:",
        "llmctl download org/name --revision main",
    ]


def test_a_sentence_that_begins_like_a_command_wraps() -> None:
    assert wrapped("llmctl (avx512bf16) (weights and attention)", 30) == [
        "llmctl (avx512bf16) (weights",
        "and attention)",
    ]
    assert wrapped("instead: llmctl login, or the variable HF_TOKEN", 30) == [
        "instead: llmctl login, or the",
        "variable HF_TOKEN",
    ]
    assert wrapped("fix: pip install --no-deps llmctl-hf (with a compiler)", 30) == [
        "fix:",
        "pip install --no-deps llmctl-hf",
        "(with a compiler)",
    ]
    assert wrapped("either: llmctl models prune or more room", 32) == ["either: llmctl models prune or", "more room"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard output as a terminal of 40 columns without colours."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "40")
    return stream


def test_an_answer_wraps_on_a_terminal_and_is_unchanged_elsewhere(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stdout", stream)
        prose = Output(no_color=True).prose()
        for word in PROSE:
            prose.write(word)
        prose.finish()
        return stream.getvalue()

    assert show(io.StringIO()) == PROSE
    assert show(terminal) == streamed(PROSE, width=40, size=1)


COLUMNS = ("model", "revision", "size", "note", "used")
ROWS = [
    ("meta-llama/Meta-Llama-3-8B-Instruct", "main 8c22764a", "16.1 GB", "complete", "2026-11-20"),
    ("org/name", "main 12345678", "269 MB", "two files of the model are missing", "2026-01-02"),
]


def lines_at(width: int, rows: Sequence[Sequence[str]] = ROWS) -> tuple[list[str], list[str]]:
    lines, omitted = table_lines(COLUMNS, rows, width=width, drop=("revision", "used"), wrap=("note",))
    return ["".join(part.text for part in line) for line in lines], omitted


def test_a_table_wraps_prose_then_drops_columns_and_never_breaks_an_id_a_number_or_a_date() -> None:
    wide, omitted = lines_at(200)
    assert (len(wide), omitted) == (3, [])
    narrower, omitted = lines_at(len(wide[2]) - 4)
    assert (len(narrower), omitted) == (4, []), "prose in two lines"
    for width, gone in ((90, ["revision"]), (75, ["revision", "used"])):
        lines, omitted = lines_at(width)
        assert omitted == gone
        assert max(map(len, lines)) <= width
        assert [line for line in lines if "meta-llama/Meta-Llama-3-8B-Instruct" in line and "16.1 GB" in line]


def test_one_id_that_is_too_wide_stands_above_its_row_and_other_rows_stay() -> None:
    lines, omitted = lines_at(50)
    assert omitted == ["revision", "used"]
    place = lines.index(ROWS[0][0])
    assert lines[place + 1].split()[:3] == ["16.1", "GB", "complete"]
    assert lines[place + 2].startswith("org/name  269 MB")
    assert max(map(len, lines)) <= 50
    longest = f"organisation/{'Long-' * 20}Name"
    lines, _ = lines_at(80, [(longest, *ROWS[0][1:]), ROWS[1]])
    assert longest in lines, "the terminal folds it, so that it can be copied"
    assert max(len(line) for line in lines if line != longest) <= 80


def test_a_table_that_cannot_fit_shows_each_row_as_names_and_values() -> None:
    wide = [ROWS[0], (ROWS[0][0].upper(), *ROWS[1][1:])]
    lines, omitted = lines_at(50, wide)
    assert omitted == []
    assert lines[0].split() == ["model", ROWS[0][0]]
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("used")] == ["2026-11-20", "2026-01-02"]
    narrow, _ = lines_at(36, wide)
    assert narrow[:2] == ["model", ROWS[0][0]], "a line of its own, if it fits there"


TABLE = "| City | 説明 | Inhabitants |\n|---|---|--:|\n| Paris | the capital of France, on the Seine | 2 102 650 |\n"
TABLE += "| 東京 | 日本の首都で、世界最大の都市圏の一つです | 14 000 000 |\n"


def table(width: int) -> list[str]:
    stream = MarkdownStream(lambda: width)
    return "".join(span.text for span in [*stream.add(TABLE), *stream.finish()]).rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [34, 50, 79])
def test_a_wide_markdown_table_wraps_its_cells(width: int) -> None:
    lines = table(width)
    assert max(map(text_width, lines)) <= width
    assert len({text_width(line) for line in lines[1:2]}) == 1
    for word in ("Paris", "capital", "東京", "14 000 000"):
        assert [line for line in lines if word in line]


def test_a_markdown_table_that_cannot_fit_becomes_one_record_for_each_row() -> None:
    lines = table(16)
    assert lines[0] == "City: Paris"
    assert "City: 東京" in lines
    assert "" in lines, "an empty line between the rows"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (b"Tell me more", "Tell me more"),
        ("größer".encode(), "größer"),
        (b"a\x1b[D\x1b[3~b\x1bOA", "ab"),
        (b"wrogn\x7f\x7fng\n", "wrong"),
        (b"no\x15yes\r", "yes"),
        (b"two\nlines\n", "two\nlines"),
        (b"\x04\x1a", ""),
    ],
)
def test_keys_typed_during_an_answer_become_the_text_that_they_typed(keys: bytes, text: str) -> None:
    assert typed_text(keys) == text
