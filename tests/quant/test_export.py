"""`llmctl quantize`: a folder that loads anywhere, written completely or not at all."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.errors import MachineError, UserError
from llmctl.loading import export
from llmctl.loading.prepare import prepare
from llmctl.quant.atomic_folder import NewFolder
from support import forkserver
from support.tiny import edit_json

Tiny = Callable[[str], Path]
Copy = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def quantize(folder: Path, output: Path, **quantization: Any) -> export.ExportedModel:
    asked = {"model": {"id": str(folder)}, "quantization": {"bits": 4, "backend": "bitsandbytes", **quantization}}
    return export.quantize(prepare(settings_from_mapping(asked)), output)


@pytest.mark.parametrize(("name", "bits"), [("llama", 4), ("llama", 8), ("gpt2", 4), ("qwen3_moe", 4)])
def test_an_exported_model_gives_the_same_tokens_as_one_quantised_while_loading(
    name: str, bits: int, tiny_models: Tiny, tmp_path: Path
) -> None:
    output = tmp_path / "quantised"
    done = quantize(tiny_models(name), output, bits=bits)
    limits = {"max_new_tokens": 12}
    fly = llmctl.load(
        tiny_models(name), quantization={"bits": bits, "backend": "bitsandbytes", "cache": False}, generation=limits
    )
    loaded = llmctl.load(output, generation=limits)
    assert done.quantization == loaded.measured.quantization == fly.measured.quantization
    assert llmctl.generate(loaded, "the capital").token_ids == llmctl.generate(fly, "the capital").token_ids
    planned, found = loaded.plan.memory.weights["cpu"], loaded.measured.device_bytes["cpu"]
    assert planned == pytest.approx(found, rel=0.04)  # tiny layers: the tables of codes count, too


def test_plain_transformers_loads_the_folder(tiny_models: Tiny, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = tmp_path / "quantised"
    quantize(tiny_models("llama"), output)
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    layer = model.model.layers[0].self_attn.q_proj
    assert (type(layer).__name__, layer.compute_dtype) == ("Linear4bit", torch.bfloat16)
    ids = tokenizer("the capital", return_tensors="pt")
    ours = llmctl.load(output).model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0), ours)


def test_the_model_card_and_the_licence_are_copied_and_nothing_else(tiny_copy: Copy, tmp_path: Path) -> None:
    folder = tiny_copy()
    for name in ("README.md", "LICENSE.txt", "notes.txt", "evil.py", "pytorch_model.bin"):
        (folder / name).write_text(name)
    (folder / "USE_POLICY.md").symlink_to("/etc/hostname")
    done = quantize(folder, tmp_path / "quantised")
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    expected |= {"tokenizer_config.json", "chat_template.jinja", "README.md", "LICENSE.txt"}
    assert set(done.files) == expected
    assert (done.folder / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert {(done.folder / name).stat().st_mode & 0o777 for name in done.files} == {0o644}


def test_generation_settings_in_the_config_of_an_older_model_are_kept(tiny_copy: Copy, tmp_path: Path) -> None:
    folder = tiny_copy()
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", repetition_penalty=1.5, eos_token_id=5)
    info = llmctl.load(quantize(folder, tmp_path / "quantised").folder).info
    assert info.generation.values == {"repetition_penalty": 1.5, "eos_token_id": [5]}


def test_a_folder_that_is_not_empty_is_never_overwritten(tiny_models: Tiny, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        quantize(tiny_models("llama"), tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        quantize(tiny_models("llama"), tmp_path / "full" / "mine")
    (tmp_path / "empty").mkdir()
    assert quantize(tiny_models("llama"), tmp_path / "empty").folder == tmp_path / "empty"


def test_a_quantised_model_is_refused(tiny_models: Tiny, tmp_path: Path) -> None:
    quantize(tiny_models("llama"), tmp_path / "one")
    with pytest.raises(UserError, match=r"is already quantised \(bitsandbytes 4-bit\)"):
        quantize(tmp_path / "one", tmp_path / "two")


def test_a_full_disk_is_detected_before_anything_is_loaded(
    tiny_models: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    monkeypatch.setattr(export, "load_prepared", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(MachineError, match="the disk is too full"):
        quantize(tiny_models("llama"), tmp_path / "quantised")
    assert not (tmp_path / "quantised").exists()


def test_a_model_that_would_be_partly_in_ram_is_refused(tiny_models: Tiny, tmp_path: Path) -> None:
    prepared = prepare(settings_from_mapping({"model": {"id": str(tiny_models("llama"))}, "quantization": {"bits": 4}}))
    split = replace(prepared, plan=replace(prepared.plan, devices=("cuda:0", "cpu")))
    with pytest.raises(MachineError, match="would stay unquantised"):
        export.quantize(split, tmp_path / "quantised")


KILLED = """
import os, signal, sys
from llmctl.loading import export
from llmctl.config import settings_from_mapping
from llmctl.loading.prepare import prepare
from pathlib import Path
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
export.shutil.copyfile = die
asked = settings_from_mapping({"model": {"id": sys.argv[1]}, "quantization": {"bits": 8, "backend": "bitsandbytes"}})
export.quantize(prepare(asked), Path(sys.argv[2]))
"""


def test_a_killed_run_leaves_no_folder_and_the_next_one_removes_its_remains(tiny_models: Tiny, tmp_path: Path) -> None:
    output, place = tmp_path / "out" / "quantised", tmp_path / "out"
    killed = forkserver.run(str(tiny_models("llama")), str(output), program=("-c", KILLED))
    assert killed.returncode == -signal.SIGKILL
    assert [path.name[0] for path in place.iterdir()] == ["."], "only a hidden folder"
    quantize(tiny_models("llama"), output)
    assert [path.name for path in place.iterdir()] == ["quantised"]


def test_an_error_while_writing_leaves_no_files(
    tiny_models: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_weights", full)
    with pytest.raises(MachineError, match="the disk is too full"):
        quantize(tiny_models("llama"), tmp_path / "out" / "quantised")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_processes_do_not_write_the_same_folder(tiny_models: Tiny, tmp_path: Path) -> None:
    busy = NewFolder(tmp_path / "quantised")
    with pytest.raises(MachineError, match="another process is writing"):
        quantize(tiny_models("llama"), tmp_path / "quantised")
    busy.drop()


def test_weights_that_bitsandbytes_has_repacked_are_not_saved(tiny_models: Tiny, tmp_path: Path) -> None:
    from llmctl.quant.bitsandbytes import is_repacked
    from llmctl.quant.cache import save_weights

    loaded = llmctl.load(tiny_models("llama"), quantization={"bits": 4, "backend": "bitsandbytes", "cache": False})
    llmctl.generate(loaded, "hello", max_new_tokens=1)
    if not is_repacked(loaded.model):
        pytest.skip("this CPU has no AVX512-BF16: bitsandbytes leaves the weights as they are")
    with pytest.raises(ValueError, match="have been used on a CPU"):
        save_weights(loaded.model, tmp_path)


def test_the_command_line_prints_the_folder_and_refuses_wrong_arguments(
    tiny_models: Tiny, tmp_path: Path, run: Run
) -> None:
    model, output = str(tiny_models("llama")), tmp_path / "quantised"
    chosen = ("--quant", "4bit", "--set", "quantization.backend=bitsandbytes")
    done = run("quantize", model, *chosen, "--output", str(output), "--json")
    document = json.loads(done.stdout)
    assert (document["schema"], document["folder"]) == ("llmctl.quantize/1", str(output))
    assert document["quantization"] == "bitsandbytes 4-bit nf4, computing in bfloat16"
    assert document["size_bytes"] == sum(path.stat().st_size for path in output.iterdir())
    asked = settings_from_mapping({"model": {"id": str(output)}})
    decided = {d.key: (d.value, d.reason) for d in prepare(asked).plan.decisions}
    assert decided["quantization"] == ("bitsandbytes 4-bit nf4", "the checkpoint is stored this way")
    assert decided["bnb_4bit_compute_dtype"] == ("bfloat16", "as stored in the checkpoint")
    for wrong, message in (
        (("quantize", model, "--output", str(output / "x")), "the number of bits is missing"),
        (("quantize", model, "--quant", "4bit", "--output", str(output)), "is not empty"),
        (("quantize", model, "--quant", "4bit"), "Missing option '--output'"),
    ):
        refused = run(*wrong)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
