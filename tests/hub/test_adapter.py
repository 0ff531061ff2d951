"""Adapters on the Hub: two files and nothing else, downloaded like a model."""

import json
import shutil
import struct
from pathlib import Path

from support.hub_machine import Machine
from support.hub_standin import HubStandin


def serve_adapter(hub: HubStandin, *, weights: str = "adapter_model.safetensors") -> str:
    """Serve acme/lora, as peft and a trainer write it."""
    folder = hub.root / "acme" / "lora"
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "acme/other", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    names = {"q_proj.lora_A.weight": [2, 64], "q_proj.lora_B.weight": [64, 2]}
    header = json.dumps(
        {
            f"base_model.model.model.layers.0.self_attn.{name}": {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [512 * number, 512 * (number + 1)],
            }
            for number, (name, shape) in enumerate(names.items())
        }
    ).encode()
    (folder / weights).write_bytes(struct.pack("<Q", len(header)) + header + bytes(1024))
    for other in ("README.md", "training_args.bin", "tokenizer.json"):
        (folder / other).write_text("{}", encoding="utf-8")
    hub.reload()
    return "acme/lora"


def test_an_adapters_two_files_are_downloaded_and_it_does_not_become_the_current_model(
    machine: Machine, hub: HubStandin
) -> None:
    done = machine.run("download", serve_adapter(hub))
    assert done.code == 0, done.err
    assert sorted(p.name for p in Path(done.out.strip()).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "llmctl generate --adapter acme/lora" in done.err
    assert "none chosen" in machine.run("use").out


def test_a_pickled_adapter_is_refused_before_any_download(machine: Machine, hub: HubStandin) -> None:
    done = machine.run("download", serve_adapter(hub, weights="adapter_model.bin"))
    assert done.code == 2
    assert "only as pickles (adapter_model.bin" in done.err


def test_an_adapter_is_downloaded_with_its_model_and_checked(machine: Machine, hub: HubStandin) -> None:
    machine.run("download", "acme/tiny")
    adapter = serve_adapter(hub)
    done = machine.run("plan", "acme/tiny", "--adapter", adapter)
    assert hub.asked("/acme/lora/resolve/")
    assert "was made for acme/other and does not fit acme/tiny" in done.out + done.err
    shutil.rmtree(hub.root / "acme" / "lora")
    hub.reload()
    hub.clear()
    again = machine.run("plan", "acme/tiny", "--adapter", adapter, "--offline")
    assert "does not fit acme/tiny" in again.out + again.err
    assert not hub.log
