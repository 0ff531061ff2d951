"""The progress of a download as a user sees it: on a terminal of 80 columns, and through a pipe."""

import re
from io import StringIO

import pexpect

from llmctl.cli._progress import DownloadProgress
from llmctl.cli._render import Output
from support.hub_machine import Machine
from support.hub_standin import HubStandin
from support.terminal import Terminal

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _watch(machine: Machine, *arguments: str) -> tuple[str, int | None]:
    seen = StringIO()
    env = machine.env | {"TERM": "xterm-256color", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}
    terminal = Terminal("download", *arguments, env=env, timeout=60)
    terminal.logfile_read = seen
    terminal.expect(pexpect.EOF)
    terminal.close()
    return seen.getvalue(), terminal.exitstatus


def test_a_terminal_shows_bytes_rate_and_remaining_time(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(r"cdn:/cdn/", "throttle", rate=20_000_000, times=1)
    raw, code = _watch(machine, big)
    assert code == 0, raw
    lines = [line.strip() for line in re.split(r"[\r\n]+", CONTROLS.sub("", raw))]
    bars = [line for line in lines if "%" in line]
    assert any(re.search(r"\d+% [\d.]+ MB/40 MB [\d.]+ MB/s \d+:\d\d", line) for line in bars), bars[:5]
    assert max(len(line) for line in bars) <= 80
    assert "model.safetensors  40 MB  checked" in lines
    assert not any("%" in line for line in lines[-3:]), "the bar is gone at the end"


def test_a_stall_is_visible(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(r"cdn:/cdn/", "stall", after=20_000_000, seconds=5)
    raw, code = _watch(machine, big)
    assert code == 0, raw
    assert re.search(r"stalled for \d s", CONTROLS.sub("", raw))


def test_a_pipe_gets_one_line_for_each_file_and_no_control_characters(machine: Machine, sharded: str) -> None:
    done = machine.run("download", sharded)
    assert len(done.out.splitlines()) == 1
    assert "\x1b" not in done.err
    assert "\r" not in done.err
    finished = [line for line in done.err.splitlines() if line.endswith("checked")]
    assert len(finished) == 8
    assert "model-00001-of-00003.safetensors  2 MB  checked" in finished


def test_quiet_leaves_only_the_result(machine: Machine) -> None:
    done = machine.run("download", "acme/tiny", "--quiet")
    assert done.err == ""
    assert done.out.startswith("/")


def test_the_rate_is_that_of_the_last_seconds() -> None:
    bar = DownloadProgress(Output(quiet=True))
    bar.start([("x", 100_000_000, 0)])
    begin = bar._last_byte
    bar._done = 50_000_000
    bar._recent.append((begin - 100, 40_000_000))
    bar._recent.append((begin, 10_000_000))
    assert bar.state(begin + 2) == "50 MB/100 MB 5 MB/s 0:10"
    assert bar.state(begin + 4) == "50 MB/100 MB stalled for 4 s"
