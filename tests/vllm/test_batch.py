"""`llmctl generate --input … --engine vllm` with a fake vLLM."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.main import main
from llmctl.generation.pictures import bytes_of_data_url, read_pictures
from support import forkserver
from support.vision.build import build
from support.vision.pictures import picture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def batch(
    fake_vllm: Path,
    tiny_models: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Return a function that runs `llmctl generate --input … --engine vllm` in this process."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([*command_line(tiny_models("llama")), *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return command


def command_line(folder: Path) -> list[str]:
    files = ["--input", "in.jsonl", "--output", "out.jsonl"]
    return ["generate", "--model", str(folder), "--engine", "vllm", "--offline", *files]


def write_rows(*rows: Any) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_request_carries_the_settings_of_its_row(batch: Run) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    write_rows(
        {"prompt": "the capital"},
        {"prompt": "of", "seed": 7, "generation": {"temperature": 0.5, "top_k": 3, "max_new_tokens": 5, "logprobs": 1}},
        {"prompt": "of", "structure": {"json_schema": schema}},
        {"prompt": "of", "structure": {"choices": ["yes", "no"]}},
        {"prompt": "of", "generation": {"stop_strings": ["x"]}},
    )
    code, _, err = batch("-n", "9")
    assert code == 0, err
    requests = [json.loads(answer["text"]) for answer in read()]
    assert [one["temperature"] for one in requests] == [0.0, 0.5, 0.0, 0.0, 0.0]
    assert [one["seed"] for one in requests] == [0, 7, 0, 0, 0]
    assert [one["max_tokens"] for one in requests] == [9, 5, 9, 9, 9]
    assert (requests[1]["top_k"], requests[4]["stop"]) == (3, ["x"])
    assert requests[2]["structured_outputs"]["json"]["required"] == ["a"]
    assert requests[3]["structured_outputs"] == {"grammar": "start: /yes|no/"}
    scored = read()[1]["logprobs"]
    assert [one["top"][0]["id"] for one in scored] == [7, 7, 7]


def test_rows_with_images_are_sent_as_messages_with_the_decoded_pictures(
    fake_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = build("qwen3_vl", tmp_path / "qwen3_vl")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    picture(1).save("a.jpg", quality=80)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    parts = [{"type": "text", "text": "and this?"}, {"type": "image", "image": "a.jpg"}]
    write_rows(
        {"id": 1, "prompt": "say it", "images": ["a.jpg"], "generation": {"logprobs": 1, "max_new_tokens": 5}},
        {"id": 2, "messages": [*turns, {"role": "user", "content": parts}], "system": "be brief"},
        {"id": 3, "prompt": "say <|im_end|>", "images": ["a.jpg"]},
        {"id": 4, "prompt": "say it"},
    )
    assert main(command_line(folder)) == 1
    answers = {one["id"]: one for one in read()}
    first, second = (json.loads(answers[number]["text"]) for number in (1, 2))
    assert (first["max_tokens"], first["top_logprobs"], first["add_generation_prompt"]) == (5, 1, True)
    assert answers[1]["logprobs"][0]["top"][0]["id"] == 7
    image, text = first["messages"][0]["content"]
    assert text == {"type": "text", "text": "say it"}
    [original] = read_pictures([Path("a.jpg")])
    [sent] = read_pictures([bytes_of_data_url(image["image_url"]["url"])])
    assert sent == original, "the very pixels that llmctl has hashed"
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][-1]["content"][1]["type"] == "image_url"
    assert "control token" in answers[3]["error"]["message"]
    assert "messages" not in json.loads(answers[4]["text"])


def test_a_refused_or_unsupported_row_does_not_affect_the_others(batch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "refuses")
    write_rows({"prompt": "a"}, {"prompt": "b", "seed": 13}, {"prompt": "c", "generation": {"num_beams": 2}})
    code, _, _ = batch()
    first, *others = read()
    assert (code, "text" in first) == (1, True)
    refused, unsupported = (one["error"]["message"] for one in others)
    assert "thirteen is refused" in refused
    assert "generation.num_beams" in unsupported


def test_the_exit_of_vllm_ends_the_run_and_answers_are_kept(batch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies later")
    rows = [{"prompt": f"number {number}"} for number in range(300)]
    write_rows(*rows)
    code, _, err = batch()
    assert code == 3
    assert "CUDA out of memory" in err
    answered = Path("out.jsonl.partial").read_bytes().count(b"\n")
    assert answered > 50
    monkeypatch.setenv("FAKE_VLLM", "healthy")
    code, out, _ = batch("--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["rows"], summary["resumed"], summary["engine"], summary["manifest"]) == (
        300,
        answered,
        "vllm",
        None,
    )
    assert [answer["id"] for answer in read()] == list(range(1, 301))


def test_answers_of_the_other_engine_are_not_resumed(
    batch: Run, tiny_models: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    write_rows({"prompt": "a"})
    assert main([*command_line(tiny_models("llama")), "--engine", "transformers", "-n", "2"]) == 0
    code, _, err = batch("-n", "2")
    assert code == 2
    assert "made with a different model, dtype or quantisation" in err


def test_a_killed_run_leaves_no_process_and_can_be_resumed(
    batch: Run, fake_vllm: Path, tiny_models: Callable[[str], Path]
) -> None:
    write_rows(*({"prompt": f"number {number}"} for number in range(400)))
    process = forkserver.start(
        *command_line(tiny_models("llama")),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "FAKE_VLLM_SECONDS": "0.3"},
    )
    partial = Path("out.jsonl.partial")
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 10):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pids, deadline = [int(one) for one in fake_vllm.read_text().split()], time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    code, _, err = batch()
    assert code == 0
    assert re.search(r"400 rows, \d+ of them answered before", err)
    assert [answer["id"] for answer in read()] == list(range(1, 401))


def test_no_vllm_is_started_if_every_row_is_answered(batch: Run, fake_vllm: Path) -> None:
    write_rows({"prompt": "a"})
    assert batch()[0] == 0
    fake_vllm.unlink()
    assert batch()[0] == 0
    assert not fake_vllm.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--manifest"], "replay"),
        (["--set", "generation.num_beams=2"], "generation.num_beams"),
        (["--cache", "static"], "--cache: "),
    ],
)
def test_unsupported_settings_are_an_error_before_vllm_starts(
    batch: Run, fake_vllm: Path, arguments: list[str], named: str
) -> None:
    write_rows({"prompt": "a"})
    code, _, err = batch(*arguments)
    assert code == 2
    assert named in err
    assert not fake_vllm.exists()
