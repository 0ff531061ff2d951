"""The output of a batch: after a kill at any step, a rerun has every row once and in order, and loses no answer."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.generation.batch import run as batch_run
from llmctl.generation.batch.answers import RowRequest
from llmctl.generation.batch.journal import Journal
from llmctl.generation.batch.keys import Identity
from llmctl.generation.batch.rows import Row, rows_of
from llmctl.generation.batch.run import BatchCounts, run_batch
from llmctl.generation.completion import Completion
from llmctl.generation.prompt import Prompt

RUN = Identity("5e771465", "0de10000")
OTHER_SETTINGS = Identity("07e50000", RUN.model)
OTHER_MODEL = Identity(RUN.settings, "07e50000")


def ready() -> Any:
    """A stand-in for a model, of which only the configuration is read."""
    return SimpleNamespace(config=Config())


class Quiet:
    def row_done(self, counts: BatchCounts) -> None: ...
    def row_failed(self, row: Row, message: str) -> None: ...


class KilledError(BaseException):
    """Stands for a kill of the process."""


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the computed prompts. Rows are answered out of order, some at a time, each with its prompt."""
    computed: list[Any] = []

    def answers(loaded: None, rows: Iterator[Row], *, on_pass: Any) -> Iterator[tuple[Row, Completion, RowRequest]]:
        window: list[Row] = []
        for row in rows:
            window.append(row)
            if len(window) == 3:
                for chosen in (window.pop(1), window.pop(1)):
                    computed.append(chosen.prompt)
                    yield chosen, done(chosen), RowRequest(None, None)
        for row in reversed(window):
            computed.append(row.prompt)
            yield row, done(row), RowRequest(None, None)

    def done(row: Row) -> Completion:
        return Completion(f"to {row.prompt}", (1, 2), "stop", None, Prompt((7, 8, 9)), 42, 0.1, 0.2)

    monkeypatch.setattr(batch_run, "answers", answers)
    return computed


def run(path: Path, values: list[Any], identity: Identity = RUN, **more: Any) -> BatchCounts:
    with_ids = more.pop("with_ids", False)
    journal = Journal(path, identity, **more)
    try:
        return run_batch(rows_of(values), journal, identity, ready, listener=Quiet(), with_ids=with_ids)
    finally:
        journal.close()


def texts(path: Path) -> list[Any]:
    return [json.loads(line).get("text") for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file != path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "answers.jsonl"


VALUES = ["a", "b", "b", "c", "d", {"prompt": "e", "id": "five", "label": 7}, "f", "b"]
TEXTS = ["to a", "to b", "to b", "to c", "to d", "to e", "to f", "to b"]


def test_answers_are_in_the_order_of_the_rows_and_no_other_file_is_left(path: Path, answered: list[Any]) -> None:
    counts = run(path, VALUES)
    assert texts(path) == TEXTS
    assert beside(path) == []
    assert (counts.rows, counts.errors, counts.resumed, counts.completion_tokens) == (8, 0, 0, 16)
    sixth = json.loads(path.read_text().splitlines()[5])
    assert (sixth["id"], sixth["input"]) == ("five", {"label": 7})
    assert sixth["key"].endswith("-5e771465-0de10000")


def test_unordered_answers_are_in_the_order_of_completion(path: Path, answered: list[Any]) -> None:
    run(path, VALUES, ordered=False)
    assert texts(path) == [f"to {prompt}" for prompt in answered]
    assert sorted(texts(path)) == sorted(TEXTS)


def killed_at(step: int, path: Path, monkeypatch: pytest.MonkeyPatch, *, half: bool) -> bool:
    """Run until the `step`-th access to the disk and stop there; True if the run got that far."""
    count = 0
    written = os.pwrite

    def touched() -> bool:
        nonlocal count
        count += 1
        return count == step

    def ending(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if touched():
                raise KilledError
            return original(*arguments, **named)

        return call

    def pwrite(descriptor: int, data: bytes, at: int) -> int:
        if touched():
            if half:
                written(descriptor, data[: len(data) // 2], at)
            raise KilledError
        return written(descriptor, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(os, "fsync", ending(os.fsync))
        patch.setattr(Path, "replace", ending(Path.replace))
        patch.setattr(Path, "unlink", ending(Path.unlink))
        journal = Journal(path, RUN)
        journal._synced = -1e9  # every line is synced
        try:
            run_batch(rows_of(VALUES), journal, RUN, ready, listener=Quiet())
        except KilledError:
            return True
        finally:
            os.close(journal._partial)  # as the system does for a process that is killed
            if journal._output is not None:
                journal._output.close()
    return False


@pytest.mark.parametrize("half", [False, True])
def test_after_a_kill_at_any_step_a_rerun_has_every_row_once(
    path: Path, answered: list[Any], monkeypatch: pytest.MonkeyPatch, *, half: bool
) -> None:
    step = 1
    while killed_at(step, path, monkeypatch, half=half):
        if path.exists():
            assert texts(path) == TEXTS, "the output appears whole"
        before = len(answered)
        run(path, VALUES)
        assert texts(path) == TEXTS
        assert beside(path) == []
        if step > 8:
            assert len(answered) - before < len(VALUES), "what was answered is not computed again"
        path.unlink()
        step += 1
    assert step > 12


def test_a_batch_that_is_killed_repeatedly_still_finishes(
    path: Path, answered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(3, 100):
        if not killed_at(step % 5 + 3, path, monkeypatch, half=True):
            break
    assert texts(path) == TEXTS
    assert len(answered) < 30


def test_a_rerun_computes_nothing_and_does_not_change_the_file(path: Path, answered: list[Any]) -> None:
    run(path, VALUES)
    before = path.stat()
    answered.clear()
    counts = run(path, VALUES)
    assert answered == []
    assert (counts.rows, counts.resumed) == (8, 8)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_edited_row_runs_again_and_its_old_answer_is_kept_in_another_file(path: Path, answered: list[Any]) -> None:
    run(path, VALUES)
    answered.clear()
    counts = run(path, ["a", "B", *VALUES[2:4], *VALUES[5:]])
    assert answered == ["B"]
    assert texts(path) == ["to a", "to B", "to b", "to c", "to e", "to f", "to b"]
    assert counts.replaced == 1
    assert texts(path.with_name("answers.jsonl.replaced")) == ["to d"]


def test_a_changed_id_or_field_needs_no_new_answer(path: Path, answered: list[Any]) -> None:
    run(path, VALUES)
    answered.clear()
    run(path, ["new", *VALUES[:5], {"prompt": "e", "id": "six", "label": 8}])
    assert answered == ["new"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == [1, 2, 3, 4, 5, 6, "six"]
    assert lines[-1]["input"] == {"label": 8}
    assert lines[-1]["text"] == "to e"


def test_a_row_with_an_error_is_tried_again(path: Path, answered: list[Any]) -> None:
    assert run(path, ["a", {"no": "prompt"}, "b"]).errors == 1
    bad = json.loads(path.read_text().splitlines()[1])
    assert bad == {
        "id": 2,
        "input": {"no": "prompt"},
        "error": {"kind": "user", "message": "neither prompt nor messages", "line": 2},
    }
    answered.clear()
    assert run(path, ["a", "now it has one", "b"]).errors == 0
    assert answered == ["now it has one"]
    assert beside(path) == []


def test_a_row_without_the_requested_token_ids_runs_again(path: Path, answered: list[Any]) -> None:
    run(path, ["a"])
    run(path, ["a"], with_ids=True)
    assert answered == ["a", "a"]
    assert json.loads(path.read_text())["token_ids"] == [1, 2]


@pytest.mark.parametrize(("identity", "difference"), [(OTHER_SETTINGS, "settings"), (OTHER_MODEL, "model")])
@pytest.mark.parametrize("finished", [True, False])
def test_answers_of_another_model_or_other_settings_are_not_reused(
    path: Path,
    answered: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    identity: Identity,
    difference: str,
    *,
    finished: bool,
) -> None:
    if finished:
        run(path, ["a", "b"])
    else:
        killed_at(4, path, monkeypatch, half=True)
    before = contents(path.parent)
    with pytest.raises(UserError) as refused:
        run(path, VALUES, identity)
    assert refused.value.details[difference] > 0
    assert "--overwrite" in str(refused.value.hint)
    assert contents(path.parent) == before
    run(path, VALUES, identity, overwrite=True)
    assert texts(path) == TEXTS
    assert beside(path) == []


def test_a_file_that_is_not_a_batch_output_is_not_replaced(path: Path, answered: list[Any]) -> None:
    path.write_text("my notes\n")
    with pytest.raises(UserError, match="not an output of llmctl generate"):
        run(path, ["a"])
    assert path.read_text() == "my notes\n"
    assert beside(path) == []


def test_two_runs_cannot_write_the_same_output(path: Path, answered: list[Any]) -> None:
    first = Journal(path, RUN)
    with pytest.raises(MachineError, match=r"another run is writing .*answers.jsonl$"):
        run(path, ["a"])
    first.close()
    run(path, ["a"])


@pytest.mark.parametrize("name", ["missing/answers.jsonl", "."])
def test_an_unwritable_path_is_one_clear_error(path: Path, answered: list[Any], name: str) -> None:
    with pytest.raises(UserError, match="cannot write"):
        run(path.parent / name, ["a"])


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(
    path: Path, answered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, room = os.pwrite, [500]

    def pwrite(descriptor: int, data: bytes, at: int) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        done = written(descriptor, data[: room[0]], at)
        room[0] -= done
        return done

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(MachineError, match=r"cannot write .*: No space left on device") as full:
        run(path, VALUES)
    assert "run the same command again" in str(full.value.hint)
    assert path.with_name("answers.jsonl.partial").read_text().endswith("\n"), "no half line"
    kept = len(texts(path.with_name("answers.jsonl.partial")))
    assert kept == 2
    room[0] = 1_000_000
    answered.clear()
    run(path, VALUES)
    assert texts(path) == TEXTS
    assert len(answered) <= len(VALUES) - kept


def test_incomplete_lines_after_a_power_cut_are_computed_again(path: Path, answered: list[Any]) -> None:
    path.with_name("answers.jsonl.partial").write_bytes(b"\0" * 100 + b'\n{"id": 1, "te')
    run(path, ["a"])
    assert texts(path) == ["to a"]
