"""The cache as a whole: listed, described, pruned, removed."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from llmctl.model.demo import FORMAT, GGUF_SHA256, MODEL_ID
from support.hub_machine import Machine, make_model
from support.hub_standin import HubStandin
from support.terminal import Terminal

Settle = Callable[[dict[str, Any]], None]


def test_a_list_shows_each_snapshot_with_its_state(machine: Machine, sharded: str) -> None:
    machine.run("download", "acme/tiny")
    machine.run("download", sharded, "--include", "config.json")
    tiny, half = sorted(machine.run("models", "list", "--json").document["models"], key=lambda m: -m["size_bytes"])
    assert (tiny["repo_id"], tiny["revisions"], tiny["missing"]) == ("acme/tiny", ["main"], [])
    assert tiny["parameters"] == 200_000
    assert tiny["parameters_by_dtype"] == {"U8": 200_000}
    assert half["repo_id"] == sharded
    assert "model.safetensors.index.json" in half["missing"]
    shown = machine.run("models", "list").out.splitlines()
    assert shown[0].split("\t")[0] == "model"
    assert any(line.startswith("acme/tiny\t") and "\tyes\t" in line for line in shown)


def test_listing_does_not_count_as_use(machine: Machine) -> None:
    machine.run("download", "acme/tiny")
    files = list(machine.repo("acme/tiny").rglob("blobs/*"))
    long_ago = time.time() - 40 * 24 * 3600
    for file in files:
        os.utime(file, (long_ago, file.stat().st_mtime))
    first = machine.run("models", "list", "--json").document["models"][0]["last_used"]
    second = machine.run("models", "list", "--json").document["models"][0]["last_used"]
    assert first == second == time.strftime("%Y-%m-%d", time.gmtime(long_ago))


def test_a_cache_of_500_models_lists_quickly(machine: Machine) -> None:
    first = make_model(machine.home / "model", shard_bytes=1000)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}
    (first / "config.json").write_text(json.dumps(config))
    for i in range(500):
        repo = machine.repo(f"acme/model-{i:03}")
        commit = f"{i:040x}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        (repo / "blobs").mkdir()
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in first.iterdir():
            os.link(file, repo / "blobs" / file.name)
            (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    done = machine.run("models", "list", "--json")
    assert done.code == 0, done.err
    assert len(done.document["models"]) == 500
    assert all(model["missing"] == [] for model in done.document["models"])
    assert all(model["parameters"] == 1000 for model in done.document["models"])


def test_info_about_a_cached_model_sends_no_request(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    hub.clear()
    facts = machine.run("models", "info", "acme/tiny", "--json").document
    assert facts["in_cache"] is True
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["has_chat_template"] is True
    assert not hub.log


def test_info_about_a_remote_model_reads_only_headers(
    machine: Machine, hub: HubStandin, sharded: str, settle: Settle
) -> None:
    settle({"repos": {sharded: {"tags": ["license:apache-2.0"]}}})
    facts = machine.run("models", "info", sharded, "--json", HF_TOKEN="hf_good").document
    assert facts["in_cache"] is False
    assert facts["licence"] == "apache-2.0"
    assert facts["gated"] is False
    assert facts["parameters"] == 6_000_000
    assert facts["size_bytes"] > 6_000_000
    assert sum(e["sent"] for e in hub.asked("/cdn/")) < 10_000
    assert not list(machine.cache.rglob("blobs/*"))


def test_info_about_a_gated_model_shows_public_facts(machine: Machine, settle: Settle) -> None:
    settle({"repos": {"acme/tiny": {"gated": "auto", "tags": ["license:llama3"]}}})
    done = machine.run("models", "info", "acme/tiny", "--json")
    assert done.code == 0, done.err
    assert (done.document["gated"], done.document["licence"]) == ("auto", "llama3")
    assert "is gated" in done.err


def test_info_about_the_small_default_without_the_hub_is_that_of_the_demo_extra(machine: Machine, models: Path) -> None:
    folder = machine.home / "llmctl" / "data" / f"demo-{FORMAT}" / "SmolLM2-135M-Instruct"
    shutil.copytree(models / "acme" / "tiny", folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder.parent / "made.json").write_text(json.dumps({"sizes": sizes, "source_sha256": GGUF_SHA256}))
    facts = machine.run("models", "info", MODEL_ID, "--json", HF_HUB_OFFLINE="1").document
    assert (facts["in_cache"], facts["folder"]) == (False, str(folder))
    assert facts["architecture"] == "LlamaForCausalLM"
    assert machine.run("models", "info", "acme/other", HF_HUB_OFFLINE="1").code == 4


def test_path_is_the_folder_alone(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    folder = machine.run("models", "path", "acme/tiny").out.strip()
    assert Path(folder).name == hub.repos["acme/tiny"].commit
    missing = machine.run("models", "path", "acme/tiyn")
    assert missing.code == 2
    assert "acme/tiny" in missing.err


def test_path_refuses_an_incomplete_model(machine: Machine) -> None:
    machine.run("download", "acme/tiny", "--include", "config.json")
    done = machine.run("models", "path", "acme/tiny")
    assert done.code == 1
    assert "model.safetensors" in done.err


def test_rm_removes_one_model_and_asks_before(machine: Machine, sharded: str) -> None:
    machine.run("download", "acme/tiny")
    machine.run("download", sharded)
    assert machine.run("models", "rm", "acme/tiny").code == 2, "there is nobody to ask"
    assert machine.is_whole("acme/tiny")
    done = machine.run("models", "rm", "acme/tiny", "--yes")
    assert done.code == 0, done.err
    assert not machine.repo("acme/tiny").exists()
    assert machine.is_whole(sharded)


def test_rm_of_a_model_that_is_not_here_asks_nothing_and_removes_no_other(machine: Machine) -> None:
    machine.run("download", "acme/tiny")
    terminal = Terminal("models", "rm", "acme/tiny", "acme/absent", env=machine.env, timeout=20)
    terminal.expect("acme/absent is not in the cache")
    terminal.expect(pexpect.EOF)
    assert "Remove" not in terminal.before
    assert machine.is_whole("acme/tiny")


def test_an_empty_list_is_one_line_on_a_terminal(machine: Machine) -> None:
    terminal = Terminal("models", "list", env=machine.env, timeout=20)
    terminal.expect(pexpect.EOF)
    assert "none yet: llmctl download org/name" in terminal.before
    assert "revision" not in terminal.before


@pytest.mark.parametrize("answer", ["y", "n"])
def test_rm_on_a_terminal_follows_the_answer(machine: Machine, answer: str) -> None:
    machine.run("download", "acme/tiny")
    terminal = Terminal("models", "rm", "acme/tiny", env=machine.env, timeout=20)
    terminal.expect("Remove acme/tiny from the cache")
    terminal.sendline(answer)
    terminal.expect(pexpect.EOF)
    assert machine.repo("acme/tiny").exists() == (answer == "n")


def test_prune_removes_only_partial_files_orphans_and_old_revisions(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    old = hub.repos["acme/tiny"].commit
    (hub.root / "acme" / "tiny" / "config.json").write_text('{"new": true, "model_type": "llama"}')
    hub.reload()
    machine.run("download", "acme/tiny")
    blobs = machine.repo("acme/tiny") / "blobs"
    (blobs / ("e" * 64 + ".llmctl.incomplete")).write_bytes(b"x" * 100)
    young, aged = blobs / ("d" * 64 + ".1234abcd.incomplete"), blobs / ("c" * 64 + ".1234abcd.incomplete")
    for partial in (young, aged):
        partial.write_bytes(b"x" * 100)
    os.utime(aged, (time.time() - 7200, time.time() - 7200))
    (blobs / ("f" * 64)).write_bytes(b"x" * 1000)

    planned = machine.run("models", "prune", "--dry-run", "--json").document
    assert sorted(item["why"] for item in planned["items"]) == ["old revision", "orphan", "partial", "partial"]
    assert (blobs / ("f" * 64)).exists()
    done = machine.run("models", "prune", "--yes", "--json")
    assert done.code == 0, done.err
    assert done.document["freed_bytes"] == planned["size_bytes"]
    assert young.exists(), "another program may be writing it"
    young.unlink()
    assert not (machine.repo("acme/tiny") / "snapshots" / old).exists()
    assert machine.is_whole("acme/tiny")
    assert machine.run("download", "acme/tiny", "--verify", "--offline").code == 0
    assert machine.run("models", "prune", "--json").document["items"] == []


def test_prune_keeps_a_running_download(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(r"cdn:/cdn/", "throttle", rate=5_000_000, times=1)
    process = machine.start("download", big)
    try:
        machine.wait_for_bytes(2_000_000)
        pruned = machine.run("models", "prune", "--yes", "--json")
        refused = machine.run("models", "rm", big, "--yes")
    finally:
        process.kill()
        process.communicate()
    assert pruned.document["items"] == []
    assert refused.code == 3
    assert f"process {process.pid}" in refused.err
    assert [i["why"] for i in machine.run("models", "prune", "--yes", "--json").document["items"]] == ["partial"]
