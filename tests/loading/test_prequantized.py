"""Tiny checkpoints of every pre-quantised format, on this CPU and without the formats' packages.

`make test-prequantized` repeats it with the packages that the package index has for CPUs.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.errors import LlmctlError, MachineError, ModelError
from llmctl.loading.loader import load_prepared
from llmctl.loading.prepare import prepare
from llmctl.quant.stored_format import Package, StoredFormat, Support
from llmctl.reproduce.script import transformers_script
from support.prequantized import BITSANDBYTES, FORMATS, write_checkpoint

Checkpoints = Callable[[str], Path]
Run = Callable[..., Any]
LOADS = ("fp8", "mxfp8", "mxfp4", "metal", "gemma", *BITSANDBYTES)
COMPILES = ("bitnet", "bitnet autobitlinear")  # their first forward pass takes half a minute


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    root = tmp_path_factory.mktemp("prequantized")

    def make(name: str) -> Path:
        folder = root / name.replace(" ", "-")
        return folder if folder.exists() else write_checkpoint(folder, name)

    return make


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", [*LOADS, *COMPILES])
def test_a_format_that_needs_no_package_takes_the_planned_bytes(
    name: str, dtype: str, checkpoints: Checkpoints
) -> None:
    loaded = llmctl.load(checkpoints(name), load={"dtype": dtype})
    planned, found = sum(loaded.plan.memory.weights.values()), sum(loaded.measured.device_bytes.values())
    assert planned == pytest.approx(found, rel=0.02)
    base = 984_976 if name == "mxfp4" else 388_224
    assert loaded.measured.parameters == pytest.approx(base, rel=0.001), "the weights, packed or not"


@pytest.mark.parametrize("name", LOADS)
def test_its_text_is_that_of_transformers(name: str, checkpoints: Checkpoints) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder, prompt = checkpoints(name), "once upon a time there"
    dtype = "bfloat16" if name in ("metal", *BITSANDBYTES) else "float32"  # transformers 5.24 ignores float32 for these
    loaded = llmctl.load(folder, load={"dtype": dtype, "cpu_kernels": False}, chat={"raw": True})
    done = llmctl.generate(loaded, prompt, max_new_tokens=12)
    ids = torch.tensor([loaded.tokenizer(prompt).input_ids])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"})
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=0
    )
    expected = out[0, ids.shape[1] :].tolist()
    assert len(done.token_ids) > 2
    assert list(done.token_ids) == expected[: len(done.token_ids)]  # llmctl also ends at the template's end of turn


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {*LOADS, *COMPILES}))
def test_any_other_format_is_refused_before_torch_is_imported(name: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(LlmctlError) as refused:
        prepare(settings_from_mapping({"model": {"id": str(checkpoints(name))}}), offline=True)
    assert type(refused.value) in (MachineError, ModelError)
    assert refused.value.details["quantization_method"]
    assert refused.value.hint


def test_plan_and_load_agree(checkpoints: Checkpoints, run: Run) -> None:
    for name, code in (("fp8", 0), ("awq", 3), ("hqq", 2)):
        folder = str(checkpoints(name))
        planned = json.loads(run("plan", folder, "--json").stdout)["machines"][0]["ways"][0]
        loaded = run("load", "--model", folder, "--json")
        assert loaded.returncode == code
        if code == 0:
            assert planned["verdict"] == "fits"
            continue
        error = json.loads(loaded.stdout)["error"]
        assert (planned["verdict"], planned["reason"], planned["hint"]) == (
            "impossible",
            error["message"],
            error["hint"],
        )


def test_doctor_finds_the_missing_package(checkpoints: Checkpoints, run: Run) -> None:
    examined = run("doctor", "--model", str(checkpoints("awq")), "--offline", "--json")
    checks = {check["name"]: check for check in json.loads(examined.stdout)["checks"]}
    assert examined.returncode == 1
    assert {name for name, check in checks.items() if check["status"] == "broken"} >= {"gptqmodel", "plan"}
    assert checks["gptqmodel"]["fix"] == checks["plan"]["fix"]
    assert checks["gptqmodel"]["fix"].startswith("pip install ")


def test_the_script_for_plain_transformers_gives_the_same_text(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_from_mapping(
        {
            "model": {"id": str(checkpoints("fp8"))},
            "load": {"dtype": "float32"},
            "chat": {"raw": True},
            "generation": {"max_new_tokens": 12},
        }
    )
    script = transformers_script(prepare(settings, offline=True), prompt="once upon a time there")
    assert 'settings["dequantize"] = True' in script
    exec(compile(script, "script", "exec"), {})
    expected = llmctl.generate(llmctl.load(config=settings), "once upon a time there")
    assert capsys.readouterr().out == f"{expected.text}\n"


def test_a_package_that_fails_is_no_bug_of_llmctl(checkpoints: Checkpoints) -> None:
    """compressed-tensors as it would be with another interface: the format's own function meets what is not there."""
    prepared = prepare(settings_from_mapping({"model": {"id": str(checkpoints("fp8"))}}), offline=True)
    stored = prepared.plan.stored_quantization
    assert stored is not None
    package = Package("some-package", "some_package")
    broken = replace(
        cast("StoredFormat", stored.backend),
        support={"cpu": Support(packages=(package,))},
        finish=lambda model: model.no_such_attribute,
    )
    plan = replace(prepared.plan, quantization=replace(stored, backend=broken))
    with pytest.raises(MachineError) as failed:
        load_prepared(replace(prepared, plan=plan))
    assert "some-package" in failed.value.message
    assert "no_such_attribute" in failed.value.message
    without = replace(broken, support={"cpu": Support()})
    with pytest.raises(AttributeError):
        load_prepared(replace(prepared, plan=replace(plan, quantization=replace(stored, backend=without))))
