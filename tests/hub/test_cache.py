"""Complete models in the cache, downloaded by any program, and llmctl's downloads read by other programs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.errors import OfflineError
from llmctl.hub import settings
from llmctl.hub.cache.snapshot import find_snapshot, look_up
from llmctl.hub.download import run
from support.hub_machine import HF, Machine
from support.hub_standin import HubStandin


@pytest.fixture
def cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the machine's cache in this process, too, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machine.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert settings.cache_dir() == machine.cache
    return machine.cache


def test_a_downloaded_model_is_found(machine: Machine, cache: Path, hub: HubStandin) -> None:
    assert find_snapshot("acme/tiny") is None
    machine.run("download", "acme/tiny")
    found = find_snapshot("acme/tiny")
    assert found is not None
    assert found.commit == hub.repos["acme/tiny"].commit
    assert found.folder == cache / "models--acme--tiny" / "snapshots" / found.commit
    assert "model.safetensors" in found.files
    assert found.size_bytes == sum((found.folder / name).stat().st_size for name in found.files)
    assert find_snapshot("acme/tiny", revision=found.commit) is not None
    assert find_snapshot("acme/tiny", revision="v1") is None
    assert find_snapshot("acme/tiny", revision="../../x") is None


def test_a_model_downloaded_by_hf_is_found(machine: Machine, cache: Path) -> None:
    assert machine.run("download", "acme/tiny", program=HF).code == 0
    assert find_snapshot("acme/tiny") is not None
    assert run.ensure("acme/tiny").files


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("program", ["llmctl", "hf"])
def test_a_model_that_lacks_a_file_is_not_complete(machine: Machine, cache: Path, name: str, program: str) -> None:
    machine.run("download", "acme/tiny", **({"program": HF} if program == "hf" else {}))
    found = find_snapshot("acme/tiny")
    assert found is not None
    (found.folder / name).unlink()
    assert look_up("acme/tiny").missing == (name,)
    with pytest.raises(OfflineError, match=name):
        run.ensure("acme/tiny", offline=True)


def test_a_model_without_any_listing_is_judged_by_its_files(machine: Machine, cache: Path, sharded: str) -> None:
    machine.run("download", sharded)
    found = find_snapshot(sharded)
    assert found is not None
    for record in machine.repo(sharded).glob("llmctl/*.json"):
        record.unlink()
    assert find_snapshot(sharded) == found
    shard = (found.folder / "model-00002-of-00003.safetensors").resolve()
    shard.write_bytes(shard.read_bytes()[:-1])
    assert look_up(sharded).missing == ("model-00002-of-00003.safetensors",)


def test_ensure_sends_no_request_for_a_complete_model(machine: Machine, cache: Path, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    hub.clear()
    assert run.ensure("acme/tiny").repo_id == "acme/tiny"
    assert not hub.log


def test_a_file_that_two_names_share_is_fetched_once(machine: Machine, hub: HubStandin) -> None:
    folder = hub.root / "acme" / "tiny"
    (folder / "vocab.json").write_bytes((folder / "tokenizer.json").read_bytes())
    hub.reload()
    assert machine.run("download", "acme/tiny").code == 0
    assert machine.is_whole("acme/tiny")
    assert len(hub.asked("/resolve/.*(vocab|tokenizer).json")) == 1


def test_a_new_commit_fetches_only_what_changed(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    (hub.root / "acme" / "tiny" / "config.json").write_text('{"new": true}')
    hub.clear()
    hub.reload()
    done = machine.run("download", "acme/tiny", "--json")
    assert done.document["fetched_bytes"] == len('{"new": true}')
    assert machine.is_whole("acme/tiny")
    assert not hub.asked("/cdn/")


def test_an_interrupted_update_leaves_the_old_commit_loadable(machine: Machine, hub: HubStandin, cache: Path) -> None:
    machine.run("download", "acme/tiny")
    before = find_snapshot("acme/tiny")
    (hub.root / "acme" / "tiny" / "config.json").write_text('{"new": true}')
    hub.reload()
    hub.fault("/resolve-cache/", status=500, times=-1)
    assert machine.run("download", "acme/tiny", "--retries", "0").code == 4
    assert find_snapshot("acme/tiny") == before


def test_leftovers_of_a_kill_between_two_steps_are_removed_and_completed(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    repo = machine.repo("acme/tiny")
    (repo / "refs" / "main").unlink()
    next(repo.glob("llmctl/*.json")).unlink()
    (repo / "refs" / ".main.abcd1234").write_text("x")
    (repo / "blobs" / ("a" * 64 + ".llmctl.incomplete")).write_text("x")
    hub.clear()
    assert machine.run("download", "acme/tiny").code == 0
    assert not list(repo.rglob(".main.*"))
    assert not machine.partials()
    assert machine.run("download", "acme/tiny", "--offline").code == 0
    assert machine.run("models", "lock", "acme/tiny").code == 0
    assert not hub.asked("/resolve/")


def test_hf_finds_nothing_wrong(machine: Machine, sharded: str) -> None:
    machine.run("download", sharded)
    verified = machine.run("cache", "verify", sharded, program=HF)
    assert verified.code == 0, verified.err
    listed = machine.run("cache", "list", program=HF)
    assert sharded in listed.out, listed.err


def test_the_lock_file_fetches_the_same_set_elsewhere(machine: Machine, hub: HubStandin, tmp_path: Path) -> None:
    machine.run("download", "acme/tiny", "--include", "config.json", "--include", "model.safetensors")
    lock = tmp_path / "tiny.lock.json"
    lock.write_text(machine.run("models", "lock", "acme/tiny").out)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Machine(tmp_path / "elsewhere", hub)
    hub.clear()
    done = elsewhere.run("download", "--locked", str(lock), "--json")
    assert done.code == 0, done.err
    assert done.document["files"] == ["config.json", "model.safetensors"]
    assert not hub.asked("/api/models/"), "the lock file says it all"
    assert elsewhere.run("download", "--locked", str(lock), "--offline").code == 4, "not all that loading needs"
    wrong = json.loads(lock.read_text())
    wrong["files"][1]["sha256"] = "0" * 64
    lock.write_text(json.dumps(wrong))
    (tmp_path / "third").mkdir()
    assert Machine(tmp_path / "third", hub).run("download", "--locked", str(lock)).code == 4


def test_excluded_files_are_not_missing_offline(machine: Machine, hub: HubStandin) -> None:
    done = machine.run("download", "acme/tiny", "--exclude", "generation_config.json", "--json")
    assert done.document["is_loadable"] is True
    hub.clear()
    assert machine.run("download", "acme/tiny", "--offline").code == 0
    assert not hub.log


def test_verify_needs_no_lock_file(machine: Machine) -> None:
    machine.run("download", "acme/tiny", program=HF)
    good = machine.run("download", "acme/tiny", "--verify", "--offline", "--json")
    assert (good.code, good.document["hashes_from"], len(good.document["files"])) == (0, "listing", 6)
    blob = next(machine.repo("acme/tiny").rglob("model.safetensors")).resolve()
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.write_bytes(content)
    assert machine.run("download", "acme/tiny", "--verify", "--offline").code == 1
    for tree in machine.repo("acme/tiny").glob("trees/*"):
        tree.unlink()
    bad = machine.run("download", "acme/tiny", "--verify", "--offline", "--json")
    assert (bad.code, bad.document["hashes_from"], bad.document["damaged"]) == (1, "names of the blobs", 1)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "llmctl.model-lock/1"}'])
def test_an_invalid_lock_file_is_refused(machine: Machine, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    done = machine.run("download", "--locked", str(tmp_path / "x.json"))
    assert done.code == 2
    assert "not a lock file" in done.err


BLOCKED = """
import socket, sys
def refuse(*a, **k): raise AssertionError("a socket was opened")
real = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX: refuse()
    return real(self, address)
socket.socket.connect = connect
socket.create_connection = socket.getaddrinfo = refuse
from llmctl.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


VARIABLE = {"HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("arguments", "more", "code"),
    [
        (["download", "acme/tiny"], VARIABLE, 0),
        (["download", "acme/tiny", "--offline"], {}, 0),
        (["download", "acme/tiny", "--verify"], VARIABLE, 0),
        (["download", "acme/tiny", "--verify", "--offline"], {}, 0),
        (["download", "acme/none"], VARIABLE, 4),
        (["download", "acme/none", "--offline"], {}, 4),
        (["download", "acme/tiny", "--dry-run", "--offline"], {}, 4),
        (["models", "list"], VARIABLE, 0),
        (["models", "info", "acme/tiny"], VARIABLE, 0),
        (["models", "info", "acme/none"], VARIABLE, 4),
        (["models", "prune", "--dry-run"], VARIABLE, 0),
        (["whoami"], VARIABLE, 4),
        (["login"], VARIABLE, 4),
        (["logout"], VARIABLE, 0),
    ],
)
def test_offline_no_socket_is_opened(machine: Machine, arguments: list[str], more: dict[str, str], code: int) -> None:
    machine.run("download", "acme/tiny")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        env=machine.env | {"HF_TOKEN": "hf_good"} | more,
        input="hf_good",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "a socket was opened" not in done.stderr
