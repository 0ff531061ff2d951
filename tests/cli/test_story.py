"""The three lines of the README against the Hub's stand-in: login, download, generate without naming a model."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import forkserver
from support.hub_standin import HubStandin
from support.tiny import write_model

Story = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandin]:
    """A stand-in with a gated model that really loads: acme/llama, for alice."""
    write_model(tmp_path / "models" / "acme" / "llama", hidden_size=256, intermediate_size=512)
    (tmp_path / "models" / "acme" / "llama" / "pytorch_model.bin").write_bytes(b"never fetched")
    settings = {"repos": {"acme/llama": {"gated": "manual", "allow": ["alice"]}}}
    (tmp_path / "models" / "hub.json").write_text(json.dumps(settings))
    with HubStandin(tmp_path / "models") as standin:
        yield standin


@pytest.fixture
def type_line(hub: HubStandin, tmp_path: Path) -> Story:
    """Type one line of the story."""

    def line(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return forkserver.run(*arguments, stdin=stdin, env={**os.environ, "HF_ENDPOINT": hub.url}, cwd=tmp_path)

    return line


def test_three_lines_from_a_token_to_a_4_bit_answer(type_line: Story, hub: HubStandin) -> None:
    refused = type_line("generate", "--model", "acme/llama", "--prompt", "hi")
    assert refused.returncode == 4
    assert "llmctl login" in refused.stderr
    assert type_line("login", stdin="hf_good\n").returncode == 0
    assert type_line("download", "acme/llama").returncode == 0
    before = len(hub.log)
    done = type_line("generate", "--quant", "4bit", "-n", "4", "--prompt", "hi", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["manifest"]["source"] == "acme/llama"
    assert len(document["manifest"]["commit"]) == 40
    assert document["load"]["quantization"].startswith(("bitsandbytes 4-bit", "llmctl 4-bit"))
    assert "model: acme/llama (named by llmctl download, " in done.stderr
    assert len(hub.log) == before, "what is complete in the cache is loaded without a word to the Hub"
    assert not [entry for entry in hub.log if "pytorch_model.bin" in entry["path"]]


def test_generate_downloads_a_missing_model_and_reports_it(type_line: Story) -> None:
    assert type_line("login", stdin="hf_good\n").returncode == 0
    done = type_line("generate", "--model", "acme/llama", "-n", "2", "--prompt", "hi")
    assert done.returncode == 0, done.stderr
    assert "fetching " in done.stderr
    assert "model: acme/llama (named by --model)" in done.stderr


def test_the_script_for_a_hub_model_names_its_commit(type_line: Story, hub: HubStandin) -> None:
    type_line("login", stdin="hf_good\n")
    type_line("download", "acme/llama")
    code = type_line("load", "--show-code").stdout
    assert f'"acme/llama", revision="{hub.repos["acme/llama"].commit}"' in code


def test_sigterm_during_the_download_of_generate_prints_how_to_continue(hub: HubStandin, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good"}
    hub.fault(path=r"/cdn/", action="stall", after=10_000, seconds=20, times=-1)
    child = forkserver.start(
        *("generate", "--model", "acme/llama", "--prompt", "hi"),
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    until = time.monotonic() + 30
    while not [entry for entry in hub.log if "/cdn/" in entry["path"]] and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 143
    assert out == ""
    assert "what arrived is kept. To continue: llmctl generate" in err
