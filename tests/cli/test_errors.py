"""Mistakes end in one clear message, the right exit code, and no traceback."""

import errno
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.cli import main as boundary
from llmctl.cli._render import visible
from llmctl.units import format_bytes

Run = Callable[..., "object"]
MISTAKES: tuple[tuple[str, ...], ...] = (
    ("generate", "--nope"),
    ("--quiet", "load"),
    ("genrate",),
    ("acme/tiny",),
    ("search", "llama"),
    ("generate", "--num-ctx", "4096", "x"),
    ("generate", "--ngl", "99", "x"),
    ("generate", "--num-samples", "2", "x"),
    ("generate", "x", "-ngl", "99"),
    ("generate", "x", "-fa"),
    ("generate", "x", "-q4"),
    ("generate", "x", "-s", "42"),
    ("generate", "x", "-c", "4096"),
    ("generate", "x", "--do_sample", "true"),
    ("generate", "x", "--no-repeat-ngram-size=3"),
    ("generate", "x", "--tensor-parallel-size", "2"),
    ("generate", "x", "--quant", "awq"),
    ("generate", "x", "--quant", "q4_k_m"),
    ("generate", "x", "--quant", "bitsandbytes"),
    ("-m", "acme/tiny", "-p", "Is this it?", "-n", "20"),
    ("--model", "acme/tiny", "chat"),
    ("-v",),
    ("--token", "secret"),
    ("hello",),
    ("server", "stop"),
    ("unload", "acme/tiny"),
    ("delete-cache",),
    ("config", "set", "seed", "1"),
    ("config", "get", "seed"),
    ("models", "pull", "acme/tiny"),
    ("models", "download", "acme/tiny"),
    ("download", "acme/tiny", "config.json"),
    ("models", "rm", "acme/tiny"),
    ("bench", "-p", "512"),
    ("generate", "--load-in-4bit", "--quant", "8bit", "x"),
    ("generate", "What", "is", "this?"),
    ("generate", "x", "--prompt", "y"),
    ("serve", "--temperature", "0.7"),
    ("serve", "acme/x", "--model", "acme/y"),
    ("download", "--model", "acme/x"),
    ("models", "rmm", "x"),
    ("doctor", "report.md"),
    ("generate", "--temperature", "hot", "--top-k", "-1", "x"),
    ("generate", "--set", "generation.num_ctx=4096", "x"),
    ("generate", "--input", "x.csv", "--prompt-template", "Summarise this"),
    ("generate", "--quant", "5bit", "--prompt", "x"),
    ("generate", "--set", "x", "--prompt", "x"),
    ("generate", "--config", "none.yaml", "--prompt", "x"),
    ("generate", "--model", "./none", "--prompt", "x"),
    ("generate", "--model", "none", "--prompt", "x"),
    ("generate", "--prompt-file", "none.txt"),
    ("generate",),
    ("generate", "--num-return", "0", "--prompt", "x"),
    ("generate", "--raw", "--template", "t", "--prompt", "x"),
    ("download", "acme/x", "--verify", "--dry-run"),
    ("use", "--revision", "v1"),
    ("use", "nonsense"),
    ("use", "nothere/x"),
    ("load", "--model", "acme/absent"),
)
GOLDEN = Path(__file__).parent / "golden" / "errors.txt"
WRITE = bool(os.environ.get("LLMCTL_WRITE_GOLDEN"))
BAD = """\
lod:
  dtype: bf16
generation:
  temprature: 0.5
  max_new_tokens: lots
  top_p: 3
"""


def test_a_bad_file_is_one_report_with_all_problems_and_lines(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    done = run("config", "validate", str(file))
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.strip().removeprefix(str(file)) for line in done.stderr.splitlines()] == [
        "error: the configuration has 4 problems:",
        ":1: lod: unknown section; did you mean load?",
        ":4: generation.temprature: unknown key; did you mean generation.temperature?",
        ":5: generation.max_new_tokens: must be a valid integer, it is 'lots'",
        ":6: generation.top_p: must be at most 1, it is 3",
        "every key with its value: llmctl config show --all",
    ]


def test_a_mistake_is_one_message_and_an_exit_code(run: Run, tmp_path: Path) -> None:
    """Compare every message with the golden file; `LLMCTL_WRITE_GOLDEN=1` (make docs) rewrites it."""
    text = ""
    for arguments in MISTAKES:
        done = run(*arguments)
        assert done.stdout == "", arguments
        assert done.stderr.startswith("error: "), arguments
        assert "Traceback" not in done.stderr, arguments
        shown = done.stderr.replace(str(tmp_path), "TMP")
        text += f"$ llmctl {shlex.join(arguments)}\n{shown}exit code {done.returncode}\n\n"
    if WRITE:
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_with_json_the_error_is_a_document_as_well(run: Run) -> None:
    done = run("generate", "--json", "--prompt", "x", "--set", "seed=-1", "--set", "lod.x=1")
    document = json.loads(done.stdout)
    assert document["schema"] == "llmctl.error/1"
    assert document["error"]["exit_code"] == done.returncode == 2
    assert {problem["key"] for problem in document["error"]["problems"]} == {"seed", "lod.x"}


def test_a_mistyped_flag_with_json_is_a_document_too(run: Run) -> None:
    document = json.loads(run("generate", "--json", "--nope").stdout)
    assert "No such option" in document["error"]["message"]


def test_debug_shows_the_traceback_of_an_error(run: Run) -> None:
    assert "Traceback" in run("load", "--debug", "--model", "./none").stderr


def test_a_bug_looks_like_a_bug_and_leaves_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from llmctl.cli import use

    def fail() -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(use, "current_model", fail)
    assert boundary.main(["use"]) == 70
    captured = capsys.readouterr()
    assert captured.err.startswith("error: this is a bug in llmctl: ZeroDivisionError: planted; details in ")
    report = Path(captured.err.strip().rpartition("details in ")[2]).read_text()
    assert "transformers 5" in report
    assert "Traceback" in report


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EACCES, 3, "/a/file: Permission denied"),
        (errno.EAGAIN, 3, "ulimit -u"),
        (errno.EMFILE, 3, "ulimit -n"),
        (errno.EBADF, 70, "this is a bug"),
    ],
)
def test_what_the_system_refuses_is_no_bug(
    number: int, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmctl.cli import use

    def refuse() -> None:
        raise OSError(number, os.strerror(number), "/a/file")

    monkeypatch.setattr(use, "current_model", refuse)
    assert boundary.main(["use"]) == code
    assert words in capsys.readouterr().err


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmctl.cli import use

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(use, "current_model", interrupt)
    assert boundary.main(["use"]) == 130


def test_control_characters_are_made_visible() -> None:
    assert visible("a\x1b]52;c;x\x07b\n\tc\x9b\u202e") == "a\\x1b]52;c;x\\x07b\n\tc\\x9b\\u202e"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (269_060_552, "269 MB"), (16.06e9, "16.1 GB")]
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(int(count)) == text
