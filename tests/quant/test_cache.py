"""The quantised cache: the second start reads what the first one wrote, and never anything else."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.cpu import kernels
from llmctl.loading.model import LoadedModel
from llmctl.loading.prepare import prepare
from llmctl.loading.quantized_cache import find_stale
from llmctl.plan.quantized_cache import RESERVE_BYTES
from llmctl.quant import cache
from llmctl.units import format_bytes
from support import forkserver
from support.tiny import edit_json

Tiny = Callable[[str], Path]
Copy = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def wait_for_cache() -> None:
    """Wait until the entry that is being written has taken its place."""
    for thread in threading.enumerate():
        if thread.name == "llmctl-quantized-cache":
            thread.join()


def load(folder: Path, **quantization: Any) -> LoadedModel:
    asked = {"bits": 4, "backend": "bitsandbytes", **quantization}
    loaded = llmctl.load(folder, quantization=asked, generation={"max_new_tokens": 12})
    wait_for_cache()
    return loaded


def decision_of(loaded: LoadedModel) -> str:
    return next(str(d) for d in loaded.plan.decisions if d.key == "quantized_copy")


@pytest.mark.parametrize(("backend", "bits"), [("bitsandbytes", 4), ("bitsandbytes", 8), ("llmctl", 4)])
def test_the_second_start_of_every_architecture_reads_the_cache_and_gives_the_same_tokens(
    architecture: str, backend: str, bits: int, tiny_models: Tiny
) -> None:
    if backend == "llmctl" and kernels.load() is None:
        pytest.skip(f"no kernels: {kernels.missing()}")
    first = load(tiny_models(architecture), backend=backend, bits=bits)
    # bitsandbytes 0.50 cannot multiply DeepSeek's four-dimensional keys by 8-bit weights on a CPU
    can_speak = (architecture, backend, bits) != ("deepseek_v3", "bitsandbytes", 8)
    said = llmctl.generate(first, "the capital of").token_ids if can_speak else None
    second = load(tiny_models(architecture), backend=backend, bits=bits)
    assert (first.plan.quantized_cache, second.plan.quantized_cache) == (None, cache.entries()[0].folder)
    assert second.measured.quantization == first.measured.quantization
    assert second.measured.device_bytes == pytest.approx(first.measured.device_bytes, rel=0.01)
    assert said is None or llmctl.generate(second, "the capital of").token_ids == said


def test_the_use_of_the_cache_is_a_decision_with_a_reason(tiny_models: Tiny) -> None:
    assert decision_of(load(tiny_models("llama"))).startswith("quantized_copy=will be written, ")
    second = decision_of(load(tiny_models("llama")))
    assert second.startswith(f"quantized_copy={format_bytes(cache.entries()[0].size_bytes)} from 20")
    assert decision_of(load(tiny_models("llama"), cache=False)) == "quantized_copy=none: quantization.cache is false"


def test_an_unquantised_load_does_not_use_the_cache(tiny_models: Tiny) -> None:
    loaded = llmctl.load(tiny_models("llama"))
    assert "quantized_copy" not in {decision.key for decision in loaded.plan.decisions}
    assert cache.entries() == ()


@pytest.mark.parametrize(
    "other",
    [
        {"bits": 8},
        {"quant_type": "fp4"},
        {"use_double_quant": True},
        {"skip_modules": ["lm_head", "down_proj"]},
        {"compute_dtype": "float32"},
    ],
)
def test_an_entry_is_not_read_for_another_setting(other: dict[str, Any], tiny_models: Tiny) -> None:
    load(tiny_models("llama"))
    assert load(tiny_models("llama"), **other).plan.quantized_cache is None


def test_an_entry_is_not_read_for_another_dtype_or_other_libraries(tiny_models: Tiny) -> None:
    from dataclasses import replace

    folder = tiny_models("llama")
    machine = load(folder).machine
    asked = {"model": {"id": str(folder)}, "quantization": {"bits": 4, "backend": "bitsandbytes"}}
    assert prepare(settings_from_mapping(asked), machine=machine).plan.quantized_cache is not None
    assert prepare(
        settings_from_mapping({**asked, "load": {"dtype": "fp16"}}), machine=machine
    ).plan.fills_quantized_cache
    newer = replace(machine, packages={**machine.packages, "bitsandbytes": "9.9.0"})
    assert prepare(settings_from_mapping(asked), machine=newer).plan.quantized_cache is None
    assert [item.why for item in find_stale(newer)] == ["copy by another version"]


def test_a_folder_that_has_changed_is_quantised_again(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    load(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    assert load(folder).plan.quantized_cache is None
    stale = find_stale(prepare(settings_from_mapping({"model": {"id": str(folder)}})).machine)
    assert [item.why for item in stale] == ["copy of a model that has changed"]


@pytest.mark.parametrize("damage", ["cut", "garbled", "other names"])
def test_a_damaged_entry_is_replaced(damage: str, tiny_models: Tiny) -> None:
    folder = tiny_models("llama")
    said = llmctl.generate(load(folder), "the capital of").token_ids
    file = cache.entries()[0].folder / "model.safetensors"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-1000])
    elif damage == "garbled":
        file.write_bytes(b"x" * 100 + content[100:])
    else:
        file.write_bytes(content.replace(b"q_proj", b"x_proj"))
    again = load(folder)
    assert llmctl.generate(again, "the capital of").token_ids == said
    assert load(folder).plan.quantized_cache is not None, "it was replaced by a good one"
    if damage != "cut":  # a wrong size shows before anything is loaded
        assert decision_of(again).startswith("quantized_copy=written again: ")


def test_the_configuration_of_an_entry_is_not_trusted(tiny_models: Tiny) -> None:
    folder = tiny_models("llama")
    load(folder)
    edit_json(cache.entries()[0].folder / "config.json", rms_norm_eps=0.5, _attn_implementation="evil/kernel")
    # the size in the record no longer matches: make it match, as one would who wants to be believed
    kept = next(iter(cache.root().iterdir()))
    record = json.loads((kept / "copy.json").read_text())
    record["sizes"]["config.json"] = (kept / "config.json").stat().st_size
    (kept / "copy.json").write_text(json.dumps(record))
    loaded = load(folder)
    assert loaded.plan.quantized_cache == kept
    assert loaded.model.config.rms_norm_eps == pytest.approx(1e-6)
    assert loaded.plan.model_kwargs["attn_implementation"] == "sdpa"
    assert loaded.measured.attn_implementation in ("sdpa", "llmctl_cpu")


def test_the_least_recently_used_entries_are_removed_first(tiny_models: Tiny) -> None:
    for name in ("llama", "qwen3", "mistral"):
        load(tiny_models(name))
    kept = {Path(copy.source).name: copy for copy in cache.entries()}
    for age, name in enumerate(("qwen3", "mistral", "llama")):
        os.utime(kept[name].folder / "copy.json", (1000 + age, 1000 + age))
    load(tiny_models("qwen3"))  # used just now
    size = max(copy.size_bytes for copy in kept.values())
    load(tiny_models("phi3"), cache_size=3 * size)
    assert {Path(copy.source).name for copy in cache.entries()} == {"llama", "qwen3", "phi3"}


def test_an_entry_larger_than_the_limit_is_not_written(tiny_models: Tiny) -> None:
    loaded = load(tiny_models("llama"), cache_size=1000)
    assert "quantization.cache_size is" in decision_of(loaded)
    assert cache.entries() == ()


def test_the_disk_is_never_filled(tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "free_bytes", lambda: RESERVE_BYTES + 1000)
    assert "the disk has" in decision_of(load(tiny_models("llama")))
    assert cache.entries() == ()


def test_a_model_loads_even_if_the_cache_cannot_be_written(
    tiny_models: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "cache_dir", lambda: tmp_path / "file")
    monkeypatch.setattr(cache, "free_bytes", lambda: 10**12)
    loaded = load(tiny_models("llama"))
    assert "it cannot be written" in decision_of(loaded)
    assert llmctl.generate(loaded, "hello").token_ids


KILLED = """
import os, signal, sys, llmctl
from llmctl.quant.atomic_folder import NewFolder
NewFolder.place = lambda self: os.kill(os.getpid(), signal.SIGKILL)
llmctl.load(sys.argv[1], quantization={"bits": 4, "backend": "bitsandbytes"})
"""


def test_a_killed_write_leaves_no_entry(tiny_models: Tiny, run: Run) -> None:
    folder = tiny_models("llama")
    done = forkserver.run(str(folder), program=("-c", KILLED))
    assert done.returncode == -signal.SIGKILL
    assert cache.entries() == ()
    pruned = json.loads(run("models", "prune", "--yes", "--json").stdout)
    assert [(item["why"], item["size_bytes"] > 50_000) for item in pruned["items"]] == [("unfinished copy", True)]
    assert list(cache.root().iterdir()) == []
    assert load(folder).plan.fills_quantized_cache
    assert len(cache.entries()) == 1


def test_a_folder_that_another_process_is_writing_is_not_removed(tiny_models: Tiny) -> None:
    from llmctl.quant.atomic_folder import NewFolder

    folder = tiny_models("llama")
    load(folder)
    name = cache.entries()[0].folder.name
    cache.remove(cache.root() / name)
    busy = NewFolder(cache.root() / name)
    try:
        assert decision_of(load(folder)) == "quantized_copy=none: another process is writing it"
        assert find_stale(load(folder).machine) == ()
    finally:
        busy.drop()


def test_the_command_line_lists_and_removes_copies(tiny_models: Tiny, run: Run) -> None:
    folder = tiny_models("llama")
    first = run("load", "--model", str(folder), "--quant", "4bit", "--set", "quantization.backend=bitsandbytes")
    assert "will be written" in first.stdout, first.stderr
    listed = json.loads(run("models", "list", "--json").stdout)["quantized_copies"]
    assert [(copy["source"], copy["quantization"]) for copy in listed] == [(str(folder), "bitsandbytes 4-bit nf4")]
    assert "quantised copy" in run("models", "list").stdout
    assert run("models", "rm", "--yes", str(folder)).returncode == 0
    assert json.loads(run("models", "list", "--json").stdout)["quantized_copies"] == []
    again = run("models", "rm", "--yes", "--copies", str(folder))
    assert (again.returncode, "there are no quantised copies of" in again.stderr) == (2, True)
    without = run("load", "--model", str(folder), "--quant", "4bit", "--no-quant-cache", "--set", "load.dtype=int3")
    assert (without.returncode, "load.dtype" in without.stderr, "quant-cache" in without.stderr) == (2, True, False)


def test_the_plan_of_a_quantised_variant_includes_the_cache(tiny_models: Tiny, run: Run) -> None:
    shown = json.loads(run("plan", str(tiny_models("llama")), "--json").stdout)
    ways = {way["name"]: way for way in shown["machines"][0]["ways"]}
    decisions = {d["key"]: d["value"] for d in ways["8-bit"]["decisions"]}
    assert decisions["quantized_copy"].startswith("will be written, ")
    assert "quantized_copy" not in {d["key"] for d in ways["bfloat16"]["decisions"]}


@pytest.mark.smollm
def test_the_real_model_gives_the_same_answer_from_the_cache(smollm: Path) -> None:
    first = load(smollm)
    said = llmctl.generate(first, "What is the capital of France?").text
    second = load(smollm)
    assert second.plan.quantized_cache is not None
    assert llmctl.generate(second, "What is the capital of France?").text == said
    assert "Paris" in said
