"""Downloads without faults: their files, messages and records."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import forkserver
from support.hub_machine import Machine
from support.hub_standin import HubStandin

Settle = Callable[[dict[str, Any]], None]


def test_it_prints_the_folder_the_commit_the_size_and_the_next_command(machine: Machine, hub: HubStandin) -> None:
    done = machine.run("download", "acme/tiny")
    assert Path(done.out.strip()).name == hub.repos["acme/tiny"].commit
    assert f"commit {hub.repos['acme/tiny'].commit}: 5 files, 200 kB" in done.err
    assert "next: llmctl generate" in done.err


def test_the_downloaded_model_becomes_the_current_one(machine: Machine) -> None:
    machine.run("download", "acme/tiny")
    assert machine.run("use").out == "acme/tiny\n"


def test_a_model_chosen_with_use_is_on_the_hub(machine: Machine) -> None:
    assert machine.run("use", "acme/absent").code == 4
    assert "none chosen" in machine.run("use").out
    assert machine.run("use", "acme/tiny").code == 0
    assert machine.run("use").out == "acme/tiny\n"


def test_a_part_of_a_model_does_not_become_the_current_one(machine: Machine) -> None:
    done = machine.run("download", "acme/tiny", "--include", "tokenizer*")
    assert done.code == 0
    assert "loading needs more files" in done.err
    assert "none chosen" in machine.run("use").out


def test_a_download_needs_one_listing_request_and_a_second_run_none(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    assert len(hub.asked("/api/models/")) == 1
    hub.clear()
    done = machine.run("download", "acme/tiny", "--json")
    assert done.document["fetched_bytes"] == 0
    assert [e["path"].split("?")[0] for e in hub.log] == ["/api/models/acme/tiny/revision/main"]


def test_a_dry_run_shows_sizes_and_writes_nothing(machine: Machine) -> None:
    plan = machine.run("download", "acme/tiny", "--dry-run", "--json").document
    assert plan["fetch_bytes"] == plan["size_bytes"] == sum(f["size_bytes"] for f in plan["files"])
    assert "README.md" not in {f["path"] for f in plan["files"]}
    assert plan["free_bytes"] > 0
    assert not machine.cache.exists()
    machine.run("download", "acme/tiny", "--include", "model.safetensors")
    plan = machine.run("download", "acme/tiny", "--dry-run", "--json").document
    assert {f["path"] for f in plan["files"] if f["bytes_here"]} == {"model.safetensors"}
    assert plan["fetch_bytes"] < 1000


def test_a_revision_is_remembered_under_its_name(machine: Machine, hub: HubStandin, settle: Settle) -> None:
    settle({"repos": {"acme/tiny": {"refs": {"v1": hub.repos["acme/tiny"].commit}}}})
    done = machine.run("download", "acme/tiny", "--revision", "v1", "--json")
    assert done.document["revision"] == "v1"
    assert (machine.repo("acme/tiny") / "refs" / "v1").read_text() == hub.repos["acme/tiny"].commit
    assert machine.run("download", "acme/tiny", "--revision", "v1", "--offline").code == 0
    assert machine.run("download", "acme/tiny", "--offline").code == 4


def test_a_pasted_address_names_the_model_and_its_revision(machine: Machine, hub: HubStandin, settle: Settle) -> None:
    commit = hub.repos["acme/tiny"].commit
    settle({"repos": {"acme/tiny": {"refs": {"v1": commit}}}})
    page = f"{hub.url}/acme/tiny"
    done = machine.run("download", f"{page}/blob/v1/README.md?download=true", "--json").document
    assert (done["repo_id"], done["revision"], done["commit"]) == ("acme/tiny", "v1", commit)
    folder = machine.run("models", "path", f"{page}/tree/v1").out
    assert Path(folder.strip()).name == commit
    assert machine.run("models", "info", f"{page}/tree/v1", "--json").document["repo_id"] == "acme/tiny"
    assert machine.run("models", "lock", f"{page}/tree/v1").code == 0
    assert machine.run("use", "hf.co/acme/tiny/tree/v1").out == "acme/tiny\n"
    shown = machine.run("config", "show").out.splitlines()
    assert [line.split("\t")[1] for line in shown if line.startswith("model.")] == ['"acme/tiny"', '"v1"']
    refused = machine.run("download", f"{page}/tree/v1", "--revision", "main")
    assert refused.code == 2
    assert machine.run("models", "rm", page, "--yes").code == 0


def test_a_repository_of_gguf_files_cannot_be_planned_and_says_why(machine: Machine, hub: HubStandin) -> None:
    folder = hub.root / "acme" / "tiny"
    (folder / "model.safetensors").rename(folder / "tiny-Q4_K_M.gguf")
    hub.reload()
    for command in (("plan", "acme/tiny"), ("plan", f"{hub.url}/acme/tiny/blob/main/tiny-Q4_K_M.gguf")):
        done = machine.run(*command)
        assert done.code in (2, 4)
        assert "GGUF" in done.err
    assert "GGUF" in machine.run("models", "info", "acme/tiny").err


def test_python_code_is_downloaded_only_on_request(machine: Machine, hub: HubStandin) -> None:
    (hub.root / "acme" / "tiny" / "modeling_own.py").write_text("raise SystemExit(9)\n")
    hub.reload()
    assert "modeling_own.py" not in machine.run("download", "acme/tiny", "--json").document["files"]
    taken = machine.run("download", "acme/tiny", "--trust-remote-code", "--json").document["files"]
    assert "modeling_own.py" in taken


@pytest.mark.parametrize(("name", "words"), [("pytorch_model.bin", "pickles"), ("x.gguf", "GGUF"), ("x.onnx", "ONNX")])
def test_a_repository_of_other_formats_is_refused(machine: Machine, hub: HubStandin, name: str, words: str) -> None:
    folder = hub.root / "acme" / "tiny"
    (folder / "model.safetensors").rename(folder / name)
    hub.reload()
    done = machine.run("download", "acme/tiny", "--json")
    assert done.code == 2
    assert done.document["error"]["kind"] == "model"
    assert words in done.document["error"]["message"]
    assert not hub.asked("/resolve/")


def test_an_index_that_names_a_shard_elsewhere_is_refused(machine: Machine, hub: HubStandin, sharded: str) -> None:
    index = hub.root / sharded / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00003-of-00003", "../../x"))
    hub.reload()
    done = machine.run("download", sharded)
    assert done.code == 2
    assert "names files that the repository lacks" in done.err


@pytest.mark.parametrize("model", ["a/b/c", "../x", "", "acme/ti ny", "acme/tiny/"])
def test_an_invalid_model_id_is_refused_without_a_request(machine: Machine, hub: HubStandin, model: str) -> None:
    done = machine.run("download", model)
    assert done.code == 2
    assert not hub.log


def test_blobs_have_the_permissions_of_the_umask(machine: Machine) -> None:
    machine.run("download", "acme/tiny")
    mask = os.umask(0)
    os.umask(mask)
    modes = {p.stat().st_mode & 0o777 for p in machine.repo("acme/tiny").rglob("*") if p.is_file()}
    assert modes == {0o666 & ~mask}


def test_transformers_loads_it_offline(machine: Machine, hub: HubStandin, tiny_models: Callable[[str], Path]) -> None:
    import shutil

    shutil.copytree(tiny_models("llama"), hub.root / "acme" / "llama")
    hub.reload()
    assert machine.run("download", "acme/llama").code == 0
    script = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "AutoTokenizer.from_pretrained('acme/llama')\n"
        "print(type(AutoModelForCausalLM.from_pretrained('acme/llama')).__name__)\n"
    )
    env = machine.env | {"HF_HUB_OFFLINE": "1"}
    done = forkserver.run(program=("-c", script), env=env, cwd=machine.home)
    assert "LlamaForCausalLM" in done.stdout, done.stderr


@pytest.fixture
def _here(machine: Machine, hub: HubStandin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the stand-in and the machine's cache in this process, too, and let the stand-in offer Xet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machine.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(machine.home / "no-token"))
    monkeypatch.setattr("llmctl.hub.download.xet.is_usable", lambda: True)
    (hub.root / "hub.json").write_text('{"repos": {"acme/tiny": {"xet": true}}}')
    hub.reload()


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("how", ["right", "wrong", "fails"])
def test_xet_downloads_are_hashed_and_http_is_the_fallback(
    machine: Machine, hub: HubStandin, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Replace only the function that fetches bytes, since a Xet server cannot be imitated."""
    from llmctl.hub.download import run

    def fetch(_offer: Any, path: Path, file: Any, *, headers: Any, arrived: Callable[[int], None]) -> None:
        content = bytearray(hub.repos["acme/tiny"].files[file.path]["full"].read_bytes())
        if how == "wrong":
            content[5] ^= 1
        path.write_bytes(content)
        arrived(len(content))
        if how == "fails":
            raise RuntimeError("the Rust side gave up")

    monkeypatch.setattr("llmctl.hub.download.xet.fetch", fetch)
    assert run.download("acme/tiny").is_loadable
    assert machine.is_whole("acme/tiny")
    assert len(hub.asked("/cdn/")) == (0 if how == "right" else 1)


def test_help_imports_nothing_heavy(machine: Machine) -> None:
    import sys

    for command in ("login", "logout", "whoami", "download", "models", "use-token"):
        script = (
            "import sys\nfrom llmctl.cli.main import main\n"
            f"assert main(['{command}', '--help']) == 0\n"
            "heavy = {'torch', 'transformers', 'huggingface_hub', 'httpx2', 'rich'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        done = machine.run("-c", script, program=sys.executable)
        assert done.code == 0, done.err
