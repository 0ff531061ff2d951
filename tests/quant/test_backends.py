"""The protocol of quantisation backends: choosing, refusing, recognising and counting without any weights."""

from dataclasses import replace
from typing import Any

import pytest

from llmctl.config import Config, settings_from_mapping
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.checkpoint import Tensor
from llmctl.plan import PlanRequest, make_plan
from llmctl.quant.backend import QuantBackend
from llmctl.quant.registry import BACKENDS, preferred, stored_quantization
from support.machines import H100, LAPTOP, LLAMA3_8B

CPU = replace(LAPTOP, kernels="avx2", packages={"bitsandbytes": "0.50.2"}, ram_available_bytes=64 * 10**9)
WITHOUT_KERNELS = replace(CPU, kernels=None)
WITHOUT_BITSANDBYTES = replace(H100, packages={})
MATRIX = Tensor("model.layers.0.mlp.down_proj.weight", "BF16", (64, 64))


def config(**quantization: Any) -> Config:
    return settings_from_mapping({"quantization": {"bits": 4, **quantization}}).config


def name_of(machine: Machine, devices: tuple[str, ...], **quantization: Any) -> str:
    return preferred(config(**quantization), machine, devices=devices).name


def test_auto_selects_the_first_backend_that_supports_the_machine() -> None:
    assert name_of(CPU, ("cpu",)) == "llmctl"
    assert name_of(WITHOUT_KERNELS, ("cpu",)) == "torch"
    assert name_of(H100, ("cuda:0",)) == "bitsandbytes"
    assert name_of(CPU, ("cpu",), use_double_quant=True) == "bitsandbytes", "a key that only this backend has"
    assert name_of(CPU, ("cpu",), backend="torch") == "torch"


def test_the_refusal_of_a_backend_has_a_reason_and_a_hint() -> None:
    refused = [
        ("llmctl", H100, ("cuda:0",), UserError),
        ("torch", H100, ("cuda:0",), UserError),
        ("llmctl", WITHOUT_KERNELS, ("cpu",), MachineError),
        ("bitsandbytes", WITHOUT_BITSANDBYTES, ("cuda:0",), MachineError),
    ]
    for name, machine, devices, kind in refused:
        asked = config(backend=name)
        refusal = preferred(asked, machine, devices=devices).refusal(asked, machine, devices=devices)
        assert type(refusal) is kind, name
        assert refusal.hint


def test_an_unknown_backend_is_a_problem_of_the_configuration() -> None:
    with pytest.raises(UserError, match=r"quantization\.backend"):
        config(backend="toy")


@pytest.mark.parametrize(
    ("stored", "name", "bits"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit", 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit", 8),
        ({"quant_method": "llmctl", "bits": 8}, "llmctl 8-bit", 8),
        ({"quant_method": "llmctl", "bits": "many"}, "llmctl", None),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit", 4),
        ({"quant_method": "fp8"}, "fp8", None),
        ({}, "unknown", None),
    ],
)
def test_a_stored_format_is_recognised(stored: dict[str, Any], name: str, bits: int | None) -> None:
    found = stored_quantization(stored)
    assert found is not None
    assert (found.name, found.bits, found.is_stored) == (name, bits, True)
    assert found.backend.script(found).config is None, "the checkpoint brings its own"
    assert found.backend.stored_bytes(MATRIX, found, dtype_bytes=4) == 4 * MATRIX.numel, "they are not quantised again"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_backend_makes_weights_smaller_and_can_be_shown(backend: QuantBackend) -> None:
    sizes = []
    for variant in backend.variants():
        asked = config(**variant.section)
        quantization, choices = backend.plan(asked, CPU, devices=("cpu",), product_dtype="bfloat16")
        size = backend.weight_bytes(MATRIX, quantization, is_tied=False)
        assert size is not None
        sizes.append(size)
        assert (choices[0].key, choices[0].value) == ("quantization", quantization.label)
        assert quantization.backend is backend
        shown = backend.script(quantization).config
        assert shown is not None
        compile(shown, "script", "eval")
    assert sizes[0] < MATRIX.size_bytes
    assert sizes == sorted(sizes, reverse=True), "the most exact first"


def test_a_folder_in_llmctls_format_needs_compiled_kernels_and_says_so() -> None:
    stored = {**LLAMA3_8B.config, "quantization_config": {"quant_method": "llmctl", "bits": 4}}
    info = replace(LLAMA3_8B, config=stored)
    with pytest.raises(MachineError) as refused:
        make_plan(PlanRequest(Config(), WITHOUT_KERNELS, info))
    assert "C++ compiler" in str(refused.value.hint)
    plan = make_plan(PlanRequest(Config(), CPU, info))
    assert plan.quantization is not None
    assert (plan.quantization.name, plan.quantizes) == ("llmctl 4-bit", False)
