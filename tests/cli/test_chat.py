"""`llmctl chat` with the real SmolLM2, on a terminal and through pipes."""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from llmctl.cli import _chat_commands as chat_commands
from llmctl.cli._line_editor import needs_more, without_quotes
from llmctl.cli._markdown import MarkdownStream
from support.chat import Chat

Run = Callable[..., Any]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Chat]]:
    """`llmctl chat …` in a pseudo-terminal of 100 columns."""
    chats = []

    def start(*arguments: str) -> Chat:
        chats.append(Chat(tmp_path, *arguments))
        return chats[-1]

    yield start
    for chat in chats:
        chat.child.close(force=True)


def messages(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][1:]


@pytest.mark.smollm
def test_three_turns_undo_retry_save_leave_and_resume(
    terminal: Callable[..., Chat], smollm: Path, tmp_path: Path
) -> None:
    chat = terminal("--model", str(smollm), "-n", "40")
    first, computed = chat.ask("What is the capital of France?")
    assert computed == first
    second, computed = chat.ask("And of Italy?")
    # new: the answer's end of turn and its newline, the message in its frame, the opening of the answer
    assert computed < 20
    assert computed < second - first
    third, _ = chat.ask("Say hello.")
    assert third > second
    assert "removed: Say hello." in chat.say("/undo")
    assert "the answer stays the same" in chat.say("/retry")
    assert "saved 4 messages in talk.jsonl" in chat.say("/save talk.jsonl")
    assert chat.leave() == 0

    saved = messages(tmp_path / "talk.jsonl")
    assert [message["role"] for message in saved] == ["user", "assistant"] * 2
    assert "Paris" in saved[1]["content"]

    again = terminal("--resume", "talk.jsonl", "-n", "40")
    tokens, _ = again.ask("Say hello.")
    assert tokens == third, "the resumed conversation is the saved one"
    again.say("/save")
    assert again.leave() == 0
    assert messages(tmp_path / "talk.jsonl")[:4] == saved


@pytest.mark.smollm
def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(
    terminal: Callable[..., Chat], smollm: Path, tmp_path: Path
) -> None:
    chat = terminal("--model", str(smollm), "-n", "3000")
    chat.child.send("Tell me a long story about a dragon and a mouse.\r")
    chat.child.expect(r"\x1b\[\?2004l")  # the message is taken; what follows is the answer
    chat.child.expect(r"[a-z]{3,},? [a-z]{3,},? [a-z]{3,}\W.*[a-z]{3,}[, ]")
    chat.child.send("/show typed\x7f\x7f\x7f\x7f\x7f\x7f")
    chat.child.sendintr()
    chat.child.expect("stopped; the partial answer is kept")
    assert "/show" not in chat.shown, "typed text is not echoed into the answer"
    chat.prompt()
    chat.child.expect("> /show")
    assert "max_new_tokens  3000" in chat.say(""), "it waited at the prompt"
    chat.say("/set max_new_tokens 8")
    chat.ask("Thank you.")
    chat.say("/save talk.jsonl")
    chat.child.sendintr()
    chat.child.expect(pexpect.EOF)
    chat.child.close()
    assert chat.child.exitstatus == 0, "at the prompt Ctrl-C leaves"
    saved = messages(tmp_path / "talk.jsonl")
    assert len(saved) == 4
    assert saved[1]["stopped"] is True
    assert saved[1]["content"]
    assert "stopped" not in saved[3]


def test_what_is_typed_on_a_terminal(
    terminal: Callable[..., Chat], tiny_models: Callable[[str], Path], tmp_path: Path
) -> None:
    chat = terminal("--model", str(tiny_models("llama")), "-n", "4", "--no-stats")
    assert "tokens in" not in chat.say("the capital")
    assert "did you mean /save?" in chat.say("/sve")
    chat.child.send("/tok\t")
    chat.child.expect("/tokens")
    chat.child.send("\r")
    assert "of 256" in chat.prompt()
    assert "max_new_tokens  4" in chat.say("/show")
    assert "/set: generation.temperature: must be" in chat.say("/set temperature minus")
    chat.say("/set parameter num_predict 3")
    assert "max_new_tokens  3" in chat.say("/show")
    assert "tokenizer.model_max_length=4096" in chat.say("/set num_ctx 4096")
    chat.say("/set verbose")
    chat.say("/set system Answer briefly.")
    shown = chat.say("/show")
    assert re.search(r"stats +on", shown)
    assert re.search(r"system +Answer briefly\.", shown)
    chat.say("/system none")
    assert "in a shell: llmctl models list" in chat.say("/list")
    assert "did you mean" not in chat.say("/stop")
    assert "/system" in chat.say("/set system_prompt short")
    chat.say("/set stats on")
    chat.child.send("two\x1b\rlines\\\rand three\r")
    chat.child.expect("tokens in")
    chat.prompt()
    chat.say("/save talk.jsonl")
    assert messages(tmp_path / "talk.jsonl")[2]["content"] == "two\nlines\nand three"
    chat.child.send("never sent")
    chat.child.expect("sent")
    chat.child.send("\x03")
    assert "the conversation is empty" in chat.say("/clear")
    assert "the conversation has no message yet" in chat.say("/undo")
    (tmp_path / "other.jsonl").write_text("mine")
    chat.child.send("/save other.jsonl\r")
    chat.child.expect(r"Replace it\? \[y/N\]")
    chat.child.send("\r")
    chat.child.expect("was not changed")
    chat.prompt()
    assert (tmp_path / "other.jsonl").read_text() == "mine"
    history = Path(os.environ["LLMCTL_HOME"]) / "state" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    chat.child.send("/bye\r")
    chat.child.expect(pexpect.EOF)


def test_another_model_continues_the_conversation(
    terminal: Callable[..., Chat], tiny_models: Callable[[str], Path]
) -> None:
    chat = terminal("--model", str(tiny_models("llama")), "-n", "4")
    chat.ask("the capital")
    chat.say("/set max_new_tokens 3")
    assert "error: " in chat.say("/model ./nowhere")
    chat.ask("of italy")
    assert str(tiny_models("qwen3")) in chat.say(f"/model {tiny_models('qwen3')}")
    tokens, computed = chat.ask("of france")
    assert tokens == computed, "nothing of the other model is used"
    assert "max_new_tokens  3" in chat.say("/show"), "what /set changed stays"
    tokens, computed = chat.ask("/continue")
    assert computed == 1, "a continued answer is not read again"
    assert chat.leave("/bye") == 0


def test_a_nearly_full_context_is_reported_and_the_oldest_turns_are_dropped_after_a_yes(
    terminal: Callable[..., Chat], tiny_models: Callable[[str], Path]
) -> None:
    chat = terminal("--model", str(tiny_models("llama")), "-n", "40")
    chat.say("the capital of france " * 20)
    chat.child.send("the capital of italy " * 20 + "\r")
    chat.child.expect("the context is nearly full")
    chat.child.expect(r"drop the oldest turns\? \[Y/n\]")
    chat.child.send("\r")
    chat.child.expect("dropped the oldest 2 messages")
    chat.child.expect("tokens in")


@pytest.mark.smollm
def test_an_answer_that_repeats_itself_stops_and_says_so(terminal: Callable[..., Chat], smollm: Path) -> None:
    chat = terminal("--model", str(smollm), "--regex", "( responsibilities){60}")
    chat.child.send("x\r")
    chat.child.expect("stopped: the answer repeats itself")
    chat.prompt()
    shown = chat.say("/show")
    assert "rest of the context" in shown
    assert "loop_guard" in shown
    chat.say("/set loop_guard off")
    chat.child.send("/retry\r")
    chat.child.expect(r"end\W.{0,30}of\W.{0,30}answer")  # the line may wrap there, with its style


def every_answer(folder: Path, text: str) -> str:
    """Change a tiny model so that every token decodes to `text`."""
    data = json.loads((folder / "tokenizer.json").read_text())
    data["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        {"type": "Replace", "pattern": {"Regex": ".+"}, "content": text},
    ]}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return str(folder)


def test_control_characters_from_a_model_do_not_reach_the_terminal(
    terminal: Callable[..., Chat], tiny_copy: Callable[..., Path]
) -> None:
    chat = terminal("--model", every_answer(tiny_copy(), "# \x1b]52;c;evil\x07 `\x1b[2J` **\x9b1m**"), "-n", "4")
    chat.child.send("x\r")
    chat.child.expect("tokens in")
    assert "\x1b]52" not in chat.child.before
    assert "\x1b[2J" not in chat.child.before
    assert "\x9b" not in chat.child.before
    assert "\\x1b]52;c;evil\\x07" in chat.child.before


@pytest.mark.parametrize("hidden", [False, True])
def test_reasoning_is_dimmed_or_hidden_and_saved_separately(
    hidden: bool, terminal: Callable[..., Chat], tiny_copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = every_answer(tiny_copy(), "<think>hm</think>Yes")
    chat = terminal("--model", folder, "-n", "4", *(["--hide-reasoning"] if hidden else []))
    chat.child.send("x\r")
    chat.child.expect("tokens in")
    assert ("\x1b[2mhm\x1b[0m" in chat.child.before) is not hidden
    assert "Yes" in chat.child.before
    assert "think" not in chat.child.before
    chat.prompt()
    chat.say("/save talk.jsonl")
    answer = messages(tmp_path / "talk.jsonl")[1]
    assert (answer["content"], answer["reasoning"]) == ("Yes", "hm")


@pytest.mark.smollm
def test_in_a_pipe_every_line_is_a_message(run: Run, smollm: Path) -> None:
    lines = "What is the capital of France?\n\nAnd of Italy?\n"
    done = run("chat", "--model", str(smollm), "-n", "20", stdin=lines)
    assert done.returncode == 0
    assert "Paris" in done.stdout
    assert done.stdout.count("\n") >= 2
    assert "\x1b" not in done.stdout + done.stderr
    assert len(re.findall(r"\d+ tokens in, \d+ of them new", done.stderr)) == 2
    quiet = run("chat", "--model", str(smollm), "-n", "20", "--json", "--quiet", stdin=lines)
    answers = [json.loads(line) for line in quiet.stdout.splitlines()]
    assert "".join(answer["text"] + "\n" for answer in answers) == done.stdout
    assert answers[1]["prefilled_tokens"] < answers[1]["prompt_tokens"] / 2
    assert quiet.stderr == ""


def test_an_invalid_conversation_file_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text("{}\n")
    done = run("chat", "--resume", str(file))
    assert done.returncode == 2
    assert "not a saved conversation" in done.stderr


@pytest.mark.parametrize(
    ("text", "more"),
    [("hello", False), ("hello\\", True), ('"""', True), ('"""a\nb', True), ('"""a\nb"""', False), ('say """', False)],
)
def test_enter_begins_a_new_line_in_an_unfinished_message(text: str, more: bool) -> None:
    assert needs_more(text) is more


def test_a_block_is_sent_without_its_quotes() -> None:
    assert without_quotes('"""\na\n b\n"""') == "a\n b"
    assert without_quotes('say """this"""') == 'say """this"""'


def test_tab_completes_every_command_and_every_setting() -> None:
    words = chat_commands.completions()
    assert " ".join(words) == (
        "/help /system /set /show /image /continue /retry /undo /edit /save /load /export /tokens /clear /model /exit"
    )
    assert {"stats", "temperature", "seed"} <= set(words["/set"])


MARKED = (
    "# Head **x**\n\nSome **bold** and `co*de` and 2 ** 3, *args\n* one\n- two `x\n> quote\n"
    "```python\ndef f(**kw):\n    # no heading\n```\nend **never\nlast*"
)


ITALIC = "An *Italic* word, _another one_, snake_case_name, 2 * 3 * 4, a*b*c, __init__, *open and **bold** end.\n"
TABLE = (
    "| Name | Size |\n|:--|--:|\n| **one** | 7 |\n| 二つ | 1234 |\n\nafter |x| and\n|no table\nend\n"
    "| a | b |\n|---|---|\n| c | d"
)


def rendered(text: str, size: int) -> list[tuple[str, str]]:
    """Return each shown character with its style, for text that arrives `size` characters at a time."""
    stream = MarkdownStream()
    spans = [span for at in range(0, len(text), size) for span in stream.add(text[at : at + size])]
    return [(character, span.style) for span in [*spans, *stream.finish()] for character in span.text]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_italics_and_tables_look_the_same_however_they_arrive(size: int) -> None:
    found = rendered(ITALIC, size)
    assert found == rendered(ITALIC, len(ITALIC))
    assert "".join(c for c, style in found if style == "italic") == "Italicanother one"
    plain = "".join(c for c, style in found if style == "")
    assert "snake_case_name, 2 * 3 * 4, a*b*c, __init__, *open and " in plain
    table = "".join(c for c, _ in rendered(TABLE, size))
    assert table == (
        "Name  Size\n────  ────\none      7\n二つ  1234\n\nafter |x| and\n|no table\nend\na  b\n─  ─\nc  d"
    )
    assert "".join(c for c, style in rendered(TABLE, size) if style == "bold") == "NameSizeoneab"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_markdown_looks_the_same_however_it_arrives(size: int) -> None:
    def render(size: int) -> list[tuple[str, str]]:
        stream = MarkdownStream()
        spans = [span for at in range(0, len(MARKED), size) for span in stream.add(MARKED[at : at + size])]
        spans += stream.finish()
        return [(character, span.style) for span in spans for character in span.text]

    found = render(size)
    assert found == render(len(MARKED))
    shown = "".join(character for character, _ in found)
    assert shown.startswith("Head x\n\nSome bold and co*de and 2 ** 3, *args\n• one\n• two `x\n▏ quote\n```python\n")
    assert shown.endswith("    # no heading\n```\nend **never\nlast*"), "code and marks that are never closed stay"
    assert "".join(c for c, style in found if style == "bold") == "xbold"
    assert "".join(c for c, style in found if style == "code") == "co*dedef f(**kw):    # no heading"
