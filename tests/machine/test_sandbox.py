"""Work within limits: in a reused child process, or in a thread if forking is not safe."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmctl.machine.sandbox import (
    Binary,
    BoundedChild,
    FailedError,
    LimitExceededError,
    run_bounded,
    run_bounded_each,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is safe on Linux alone")


def work(argument: Any) -> Any:
    """Do what the test asks for."""
    match argument:
        case ["sleep", seconds]:
            time.sleep(seconds)
        case ["spin"]:
            while True:
                pass
        case ["allocate", count]:
            return len(bytearray(count))
        case ["bytes", count]:
            return Binary({"count": count}, b"\n\0" * (count // 2))
        case ["print", text]:
            os.write(1, text.encode())
            os.write(2, text.encode())
        case ["raise", message]:
            raise ValueError(message)
        case ["pid"]:
            return os.getpid()
        case ["exit"]:
            os._exit(3)
        case ["open files"]:
            return [str(file) for file in Path("/proc/self/fd").iterdir()]
    return argument


@pytest.fixture
def child() -> Iterator[BoundedChild]:
    made = BoundedChild(work, seconds=1, extra_bytes=300_000_000)
    yield made
    made.close()


def test_one_child_serves_all_calls(child: BoundedChild) -> None:
    assert child(["pid"]) == child(["pid"]) != os.getpid()
    assert child({"a": ["ü\n", None, 1.5]}) == {"a": ["ü\n", None, 1.5]}
    assert child("x" * 3_000_000) == "x" * 3_000_000


def test_an_exception_is_reported_and_the_child_continues(child: BoundedChild) -> None:
    pid = child(["pid"])
    with pytest.raises(FailedError, match="no good") as caught:
        child(["raise", "no good"])
    assert caught.value.kind == "ValueError"
    assert child(["pid"]) == pid


@pytest.mark.parametrize("too_much", [["sleep", 60], ["spin"], ["allocate", 1_000_000_000]])
def test_endless_work_is_ended_and_the_next_call_succeeds(child: BoundedChild, too_much: list[Any]) -> None:
    with pytest.raises(LimitExceededError):
        child(too_much)
    assert child("next") == "next"


def test_bytes_arrive_as_bytes_between_other_results(child: BoundedChild) -> None:
    assert child(["bytes", 3_000_000]) == Binary({"count": 3_000_000}, b"\n\0" * 1_500_000)
    assert child("next") == "next"
    works = [lambda n=n: work(["bytes", n]) if n % 4 else work(n) for n in range(0, 200, 2)]
    outcomes = list(run_bounded_each(works))
    assert outcomes == [Binary({"count": n}, b"\n\0" * (n // 2)) if n % 4 else n for n in range(0, 200, 2)]


def test_a_result_that_is_too_large_ends_its_work_alone() -> None:
    works = [lambda: work(["bytes", 2000]), lambda: "x" * 2000, lambda: work(["bytes", 10])]
    first, second, third = run_bounded_each(works, result_bytes=1000)
    assert isinstance(first, LimitExceededError)
    assert isinstance(second, LimitExceededError)
    assert third == Binary({"count": 10}, b"\n\0" * 5)


def test_a_child_that_was_killed_is_replaced(child: BoundedChild) -> None:
    pid = child(["pid"])
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert child(["pid"]) != pid
    with pytest.raises(LimitExceededError):
        child(["exit"])
    assert child("next") == "next"


def test_the_child_is_replaced_after_many_calls() -> None:
    child = BoundedChild(work, calls_per_child=3)
    assert len({child(["pid"]) for _ in range(7)}) == 3
    child.close()


def test_threads_get_their_own_results(child: BoundedChild) -> None:
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: [child(n) for _ in range(50)]})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [n] * 50 for n in range(8)}


def test_the_child_closes_the_files_of_its_parent(child: BoundedChild) -> None:
    with Path("/etc/hostname").open("rb"):
        assert len(child(["open files"])) <= 6  # its three standard ones, two pipes, and the listing itself


def test_messages_of_the_child_do_not_reach_the_terminal(
    child: BoundedChild, capfd: pytest.CaptureFixture[str]
) -> None:
    child(["print", "warning\n"])
    assert list(run_bounded_each([lambda: work(["print", "x"])])) == [["print", "x"]]
    assert capfd.readouterr() == ("", "")


def test_the_child_ends_with_its_parent() -> None:
    code = (
        "import os, time\nfrom llmctl.machine.sandbox import BoundedChild\n"
        "print(BoundedChild(lambda _: os.getpid())(None), flush=True)\nos._exit(0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid = json.loads(ended.stdout)
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


def test_without_fork_work_runs_in_a_thread_with_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmctl.machine.sandbox.CAN_FORK_SAFELY", False)
    child = BoundedChild(work, seconds=0.3)
    assert child(["pid"]) == os.getpid() == run_bounded(os.getpid)
    with pytest.raises(FailedError) as caught:
        child(["raise", "no good"])
    assert caught.value.kind == "ValueError"
    with pytest.raises(LimitExceededError):
        child(["spin"])
    while any(thread.name.endswith("(run)") for thread in threading.enumerate()):  # the loop is interrupted
        time.sleep(0.01)
    assert child("next") == "next"


def test_without_fork_each_work_has_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmctl.machine.sandbox.CAN_FORK_SAFELY", False)
    works = [lambda: 1, lambda: work(["spin"]), lambda: work(["raise", "x"]), lambda: work(["bytes", 4])]
    first, second, third, fourth = run_bounded_each(works, seconds=0.3)
    assert (first, fourth) == (1, Binary({"count": 4}, b"\n\0\n\0"))
    assert isinstance(second, LimitExceededError)
    assert isinstance(third, FailedError)
