"""A cache without symbolic links, as on Windows without developer mode or on a FAT disk: each byte is stored once."""

import errno
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llmctl.hub.cache.paths import bytes_on_disk, give_names
from support.hub_machine import HF, Machine
from support.hub_standin import HubStandin


@pytest.fixture
def machine(machine: Machine) -> Machine:
    """Return a machine whose cache has no links."""
    machine.more = {"HF_HUB_DISABLE_SYMLINKS": "1", "HF_HUB_DISABLE_SYMLINKS_WARNING": "1"}
    return machine


def served_bytes(machine: Machine, repo_id: str, *, without: str = "README.md") -> int:
    return sum(file["size"] for path, file in machine.hub.repos[repo_id].files.items() if path != without)


def stored_bytes(machine: Machine, repo_id: str) -> int:
    repo = machine.repo(repo_id)
    return bytes_on_disk([*repo.glob("blobs/*"), *repo.glob("snapshots/**/*")])


def listed(machine: Machine) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = machine.run("models", "list", "--json").document["models"]
    return models


def test_every_byte_is_stored_once_and_counted_once(machine: Machine) -> None:
    assert machine.run("download", "acme/tiny").code == 0
    assert machine.is_whole("acme/tiny")
    assert not [path for path in machine.repo("acme/tiny").rglob("*") if path.is_symlink()]
    size = served_bytes(machine, "acme/tiny")
    assert stored_bytes(machine, "acme/tiny") == size
    assert [(model["size_bytes"], model["missing"]) for model in listed(machine)] == [(size, [])]
    again = machine.run("download", "acme/tiny", "--json").document
    assert again["fetched_bytes"] == 0
    removed = machine.run("models", "rm", "acme/tiny", "--yes", "--json").document["removed"]
    assert removed["acme/tiny"] >= size, "the lock file and the refs count as well"
    assert not machine.repo("acme/tiny").exists()


def test_equal_content_has_one_copy(machine: Machine, hub: HubStandin) -> None:
    folder = hub.root / "acme" / "tiny"
    shutil.copy(folder / "model.safetensors", folder / "model-copy.safetensors")
    hub.reload()
    arguments = ("download", "acme/tiny", "--include", "*.safetensors", "--include", "*.json")
    assert machine.run(*arguments).code == 0
    copy = (folder / "model-copy.safetensors").stat().st_size
    assert stored_bytes(machine, "acme/tiny") == served_bytes(machine, "acme/tiny") - copy
    assert len(hub.asked("/cdn/")) == 1
    assert machine.run("download", "acme/tiny", "--verify").code == 0


def test_damage_is_found_and_repaired_by_the_hub_alone(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    name = next(machine.repo("acme/tiny").glob("snapshots/*/model.safetensors"))
    name.write_bytes(bytes(name.stat().st_size))
    assert machine.run("download", "acme/tiny", "--verify", "--offline").code == 1
    assert machine.run("download", "acme/tiny", "--verify").code == 0
    assert machine.is_whole("acme/tiny")


def test_a_new_revision_fetches_what_changed_and_prune_frees_what_it_says(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    (hub.root / "acme" / "tiny" / "generation_config.json").write_text('{"top_k": 1, "top_p": 0.25}')
    hub.reload()
    hub.clear()
    assert machine.run("download", "acme/tiny").code == 0
    assert machine.is_whole("acme/tiny")
    assert not hub.asked("/cdn/"), "the weights are the same"
    before = stored_bytes(machine, "acme/tiny")
    pruned = machine.run("models", "prune", "--yes", "--json").document
    assert [item["why"] for item in pruned["items"]] == ["old revision"]
    assert before - stored_bytes(machine, "acme/tiny") == pruned["freed_bytes"] == 2
    assert machine.is_whole("acme/tiny")


def test_prune_counts_the_files_of_an_old_revision(machine: Machine, hub: HubStandin, sharded: str) -> None:
    machine.run("download", sharded)
    old = stored_bytes(machine, sharded)
    for shard in (hub.root / sharded).glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    hub.reload()
    machine.run("download", sharded)
    before = stored_bytes(machine, sharded)
    assert before > 1.9 * old
    [item] = machine.run("models", "prune", "--dry-run", "--json").document["items"]
    assert machine.run("models", "prune", "--yes", "--json").document["freed_bytes"] == item["size_bytes"]
    assert before - stored_bytes(machine, sharded) == item["size_bytes"] > 5_000_000


def test_a_damaged_file_of_another_revision_is_not_taken(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    name = next(machine.repo("acme/tiny").glob("snapshots/*/model.safetensors"))
    name.write_bytes(bytes(name.stat().st_size))
    (hub.root / "acme" / "tiny" / "generation_config.json").write_text('{"top_k": 2}')
    hub.reload()
    assert machine.run("download", "acme/tiny").code == 0
    assert machine.is_whole("acme/tiny")


def test_huggingface_hub_and_llmctl_read_the_same_files(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    script = "import huggingface_hub as h; print(h.snapshot_download('acme/tiny', allow_patterns='*.json'))"
    hub.clear()
    done = machine.run("-c", script, program=sys.executable, HF_HUB_OFFLINE="1")
    assert done.code == 0, done.err
    assert Path(done.out.strip(), "config.json").read_bytes() == (hub.root / "acme/tiny/config.json").read_bytes()
    shutil.rmtree(machine.repo("acme/tiny"))
    assert machine.run("download", "acme/tiny", program=HF).code == 0
    hub.clear()
    assert machine.run("download", "acme/tiny", "--json").document["fetched_bytes"] == 0
    assert machine.run("download", "acme/tiny", "--verify").code == 0


def test_a_file_system_that_refuses_links_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr("os.link", refuse)
    blob = tmp_path / "blobs" / "digest"
    blob.parent.mkdir()
    blob.write_bytes(b"content")
    give_names(blob, tmp_path / "snapshot", ["a", "sub/b"])
    assert [(tmp_path / "snapshot" / name).read_bytes() for name in ("a", "sub/b")] == [b"content"] * 2
    assert not blob.exists()
    assert len(list(tmp_path.rglob("*"))) == 5, "nothing else is left"
