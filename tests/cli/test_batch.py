"""`llmctl generate --input`: a file of prompts through the whole command line: killed, interrupted and resumed.

Two kills by default; `LLMCTL_BATCH_KILLS=20 LLMCTL_BATCH_ROWS=2000` (make kills) is the long run,
which has more architectures.
"""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.cli.main import main
from support import forkserver
from support.tiny import write_model

KILLS = int(os.environ.get("LLMCTL_BATCH_KILLS", "2"))
ROWS = int(os.environ.get("LLMCTL_BATCH_ROWS", "80"))
# a Llama; in the long run also a hybrid, latent attention, and attention sinks with a mixture of experts
KILLED = ["llama", *(["qwen3_5", "deepseek_v3", "gpt_oss"] if "LLMCTL_BATCH_KILLS" in os.environ else [])]
WORDS = ("the", "capital", "of", "france", "is", "paris", "a", "small", "model", "wanted", "to", "speak", "every")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model in float32, whose answers do not depend on the batch."""
    return write_model(tmp_path_factory.mktemp("batch") / "llama", dtype="float32", max_position_embeddings=512)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def batch(here: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`llmctl generate --model … -n 6` in this process: the exit code, standard output, standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["generate", "--model", str(folder), "-n", "6", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return command


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Return rows with prompts and answers of mixed length."""
    choice = random.Random(7)
    lengths = [1, 2, 5, 10, 60]
    return [
        {
            "prompt": " ".join(choice.choices(WORDS, k=choice.choice(lengths))),
            "number": number,
            "generation": {"max_new_tokens": choice.choice([1, 4, 16, 48])},
        }
        for number in range(1, count + 1)
    ]


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def start(folder: Path, *arguments: str, **more: Any) -> Any:
    pipe: Any = subprocess.PIPE
    return forkserver.start("generate", "--model", str(folder), *arguments, stdout=pipe, stderr=pipe, text=True, **more)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until the condition holds or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("architecture", KILLED)
def test_killed_at_random_moments_the_file_has_every_row_in_order_as_if_answered_alone(
    here: Path, tmp_path: Path, architecture: str
) -> None:
    folder = write_model(tmp_path / architecture, architecture, dtype="float32", max_position_embeddings=512)
    rows, choice = mixed_rows(ROWS), random.Random(ROWS)
    write_rows(here / "in.jsonl", rows)
    output, partial = here / "out.jsonl", here / "out.jsonl.partial"
    arguments = ["--input", "in.jsonl", "--output", "out.jsonl"]
    kills = 0
    while kills < KILLS:
        process = start(folder, *arguments)
        wanted = lines(partial) + choice.random() * 0.7 * ROWS / KILLS  # so that rows are left for every kill
        if choice.random() < 0.8:
            wait_for(lambda wanted=wanted: lines(partial) > wanted, process)  # type: ignore[misc]
            time.sleep(choice.random() / 200)
        else:
            time.sleep(choice.random() * 3)  # while it starts
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it was done first
            break
        kills += 1
        assert process.returncode == -signal.SIGKILL
    process = start(folder, *arguments, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    answers = read(output)
    assert [answer["id"] for answer in answers] == list(range(1, ROWS + 1))
    assert [answer["input"]["number"] for answer in answers] == list(range(1, ROWS + 1))
    assert not partial.exists()
    summary = json.loads(out)
    sys.stdout.write(f"{kills} kills, {summary['resumed']} of {summary['rows']} rows were there for the last run\n")
    assert (summary["schema"], summary["rows"], summary["errors"]) == ("llmctl.batch/1", ROWS, 0)
    loaded = llmctl.load(folder)
    for row, answer in zip(rows, answers, strict=True):
        alone = llmctl.generate(loaded, row["prompt"], **row["generation"])
        assert answer["text"] == alone.text, row
        assert answer["finish_reason"] == alone.finish_reason


def test_ctrl_c_keeps_the_answers_and_prints_how_to_continue(here: Path, folder: Path) -> None:
    write_rows(here / "in.jsonl", mixed_rows(1000))
    process = start(folder, "--input", "in.jsonl", "--output", "out.jsonl")
    wait_for(lambda: size(here / "out.jsonl.partial") > 500, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    kept = len(read(here / "out.jsonl.partial"))
    assert f"stopped; {kept} of 1,000 answers are kept in out.jsonl.partial. To continue: llmctl generate" in err
    assert "Traceback" not in err
    assert not (here / "out.jsonl").exists()


def test_sigterm_ends_a_run_that_waits_for_rows(here: Path, folder: Path) -> None:
    with start(folder, "--input", "-", "--output", "out.jsonl", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write('{"no": "prompt"}\n')
        process.stdin.flush()
        wait_for(lambda: size(here / "out.jsonl.partial") > 0, process)
        process.terminate()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait() == 143, err
    assert "stopped; 0 answers are kept" in err


def test_a_pipe_that_is_closed_ends_the_run(here: Path, folder: Path) -> None:
    write_rows(here / "in.jsonl", mixed_rows(300))
    with start(folder, "--input", "in.jsonl") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 1, err
    assert "standard output was closed" in err
    assert "Traceback" not in err


def test_lines_of_text_to_standard_output(batch: Run, here: Path) -> None:
    (here / "in.txt").write_text("the capital\n\nof italy\n")
    code, out, err = batch("--input", "in.txt", "--token-ids", "--logprobs", "1")
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    names = "id text finish_reason length_limit stop_string prompt_tokens completion_tokens seed token_ids logprobs key"
    assert list(first) == names.split()
    assert [scored["id"] for scored in first["logprobs"]] == first["token_ids"]
    assert (first["id"], second["id"], len(first["token_ids"])) == (1, 2, first["completion_tokens"])
    assert "an interrupted run starts over; --output FILE can be resumed" in err
    assert "2 rows; " in err


def test_answers_with_a_manifest_can_be_replayed(batch: Run, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "the capital"},
        {"prompt": "of italy", "seed": 3, "generation": {"temperature": 0.9}},
        {"prompt": "two plus two", "structure": {"choices": ["four", "five"]}},
    ]
    write_rows(here / "in.jsonl", rows)
    assert batch("--input", "in.jsonl", "--output", "out.jsonl", "--manifest")[0] == 0
    written = read(here / "out.jsonl")
    assert [row["manifest"]["generation_kwargs"]["do_sample"] for row in written] == [False, True, False]
    assert main(["replay", "out.jsonl"]) == 0
    assert "3 of 3 identical" in capfd.readouterr().err
    written[1]["token_ids"][2] += 1
    write_rows(here / "out.jsonl", written)
    assert main(["replay", "out.jsonl"]) == 1
    assert "different from token 2 on" in capfd.readouterr().out


def test_bad_rows_give_errors_in_order_and_exit_code_1(batch: Run, here: Path) -> None:
    (here / "in.jsonl").write_text(
        '{"prompt": "a", "id": "one"}\nnonsense\n{"prompt": "b", "generation": {"temperatur": 1}}\n'
        + json.dumps({"prompt": "word " * 500, "id": "long"})
        + '\n{"prompt": "c"}\n'
    )
    code, out, err = batch("--input", "in.jsonl", "--output", "out.jsonl", "--json")
    assert code == 1
    one, bad, typo, long, last = read(here / "out.jsonl")
    assert (one["id"], last["id"], "text" in one, "text" in last) == ("one", 5, True, True)
    assert bad["error"]["line"] == 2
    assert bad["error"]["message"].startswith("not JSON")
    assert "did you mean generation.temperature?" in typo["error"]["message"]
    assert (long["id"], long["error"]["line"]) == ("long", 4)
    assert "the context of" in long["error"]["message"]
    assert "warning: line 2: not JSON" in err
    assert "3 of 5 rows have an error instead of an answer" in err
    summary = json.loads(out)
    assert (summary["schema"], summary["rows"], summary["errors"]) == ("llmctl.batch/1", 5, 3)
    assert summary["manifest"]["schema"] == "llmctl.manifest/1"


def test_only_changed_rows_run_again(batch: Run, here: Path) -> None:
    files = ["--input", "in.csv", "--column", "q", "--output", "out.jsonl"]
    (here / "in.csv").write_text("q,label\none,1\ntwo,2\nthree,3\n")
    assert batch(*files)[0] == 0
    before = read(here / "out.jsonl")
    code, _, err = batch(*files)
    assert code == 0
    assert "every row was answered before" in err
    (here / "in.csv").write_text("q,label\none,1\nTWO,2\nthree,3\n")
    code, _, err = batch(*files)
    after = read(here / "out.jsonl")
    assert code == 0
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1]["text"] != before[1]["text"]
    assert "1 earlier answer without a row in in.csv: moved to out.jsonl.replaced" in err
    assert read(here / "out.jsonl.replaced") == [before[1]]

    code, _, err = batch(*files, "--temperature", "0.5")
    assert code == 2
    assert "out.jsonl has 3 answers made with different settings" in err
    assert "--overwrite" in err
    assert read(here / "out.jsonl") == after
    assert batch(*files, "--temperature", "0.5", "--overwrite")[0] == 0
    assert {row["key"] for row in read(here / "out.jsonl")}.isdisjoint({row["key"] for row in after})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "missing.jsonl"], "--input missing.jsonl: No such file or directory"),
        (["--input", "in.data"], "--input-format, one of jsonl, text, csv, tsv"),
        (["--input", "in.jsonl", "--prompt", "x"], "--prompt cannot be combined with --input"),
        (["--input", "in.jsonl", "--prompt-file", "in.jsonl"], "--prompt-file cannot be combined with --input"),
        (["--input", "in.jsonl", "--num-return", "2"], "--num-return cannot be combined with --input"),
        (["--input", "in.jsonl", "--overwrite"], "--overwrite works only with --output"),
        (["--input", "in.jsonl", "--output", "-", "--overwrite"], "--overwrite works only with --output"),
        (["--input", "in.jsonl", "--vllm-python", "python"], "--vllm-python works only with --engine vllm"),
        (["--input", "in.jsonl", "--output", "in.jsonl", "--overwrite"], "are the same file"),
        (["--input", "in.jsonl", "--output", "no/such/out.jsonl"], "cannot write"),
        (["--input", "in.jsonl", "--output", "."], "cannot write"),
        (["--input", "in.jsonl", "--json"], "give --output FILE"),
        (["--prompt", "x", "--output", "out.txt"], "--output works only with --input"),
        (["--input", "in.csv"], "no column 'prompt'; it has 'q'"),
    ],
)
def test_an_impossible_run_is_one_error_message(batch: Run, here: Path, arguments: list[str], said: str) -> None:
    write_rows(here / "in.jsonl", ["a"])
    (here / "in.data").write_text("a")
    (here / "in.csv").write_text("q\na\n")
    before = sorted(here.iterdir())
    code, _, err = batch(*arguments)
    assert code == 2
    assert said in err
    assert sorted(here.iterdir()) == before
    assert (here / "in.jsonl").read_text() == '"a"\n'


@pytest.mark.parametrize(
    "flag",
    [
        "--output=out.jsonl",
        "--input-format=csv",
        "--column=q",
        "--unordered",
        "--overwrite",
        "--token-ids",
        "--manifest",
    ],
)
def test_a_batch_flag_without_input_is_refused(batch: Run, here: Path, flag: str) -> None:
    code, out, err = batch("--prompt", "x", flag)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {flag.partition('=')[0]} works only with --")
    assert list(here.iterdir()) == []


def test_a_lock_does_not_outlive_its_process_in_a_child(here: Path) -> None:
    """A template is rendered in a forked child: if the run is killed meanwhile, a rerun must not find a lock."""
    from llmctl.machine.sandbox import run_bounded

    held = os.open(here / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    inode = os.fstat(held).st_ino
    assert run_bounded(lambda: [n for n in range(3, 100) if _inode(n) == inode]) == []
    os.close(held)


def _inode(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


def test_a_draft_is_reported_for_each_answer_and_for_the_run(batch: Run, here: Path, folder: Path) -> None:
    write_rows(here / "in.jsonl", [{"prompt": "the capital of france"}, {"prompt": "two plus two"}])
    plain, _, _ = batch("--input", "in.jsonl", "--output", "plain.jsonl")
    code, out, err = batch("--input", "in.jsonl", "--output", "out.jsonl", "--draft", str(folder), "--json")
    assert (plain, code) == (0, 0), err
    answers = read(here / "out.jsonl")
    assert [one["text"] for one in answers] == [one["text"] for one in read(here / "plain.jsonl")]
    summary = json.loads(out)["gains"]
    for name in ("forward_passes", "drafted_tokens", "accepted_tokens"):
        assert summary[name] == sum(one["gains"][name] for one in answers)
    assert summary["accepted_tokens"] > 0
    code, _, err = batch("--input", "in.jsonl", "--output", "lookup.jsonl", "--prompt-lookup", "2")
    assert (code, "proposed" in err) == (0, True), err
    assert [one["text"] for one in read(here / "lookup.jsonl")] == [one["text"] for one in answers]


def test_requests_of_the_batch_api_are_answered_in_its_form_and_resumed(batch: Run, here: Path) -> None:
    body = {"model": "any", "messages": [{"role": "user", "content": "the capital"}], "max_tokens": 3}
    ask = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    write_rows(here / "in.jsonl", [ask, {**ask, "custom_id": "b", "url": "/v1/embeddings"}])
    code, _, _ = batch("--input", "in.jsonl", "--output", "out.jsonl")
    assert code == 1
    good, bad = read(here / "out.jsonl")
    assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("a", None, 200)
    choice = good["response"]["body"]["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": good["text"]}
    assert good["response"]["body"]["usage"]["completion_tokens"] == good["completion_tokens"] <= 3
    assert (bad["custom_id"], bad["response"]) == ("b", None)
    assert {"code", "message"} <= bad["error"].keys()
    code, _, said = batch("--input", "in.jsonl", "--output", "out.jsonl")
    assert code == 1
    assert "1 of them answered before" in said
    assert read(here / "out.jsonl") == [good, bad]
