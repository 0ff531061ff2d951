"""The table of pre-quantised formats: which machine loads which, and what the others are told. No weights are read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmctl.config import settings_from_mapping
from llmctl.errors import LlmctlError, MachineError, ModelError, UserError
from llmctl.machine.detection import Machine
from llmctl.machine.presets import preset_machine
from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo
from llmctl.plan import Plan, PlanRequest, make_plan
from llmctl.plan.survey import survey
from llmctl.quant.checkpoint_formats import FORMATS, find_format, packages_of_formats
from support.machines import H100, LAPTOP, LLAMA3_8B, MAC, RTX_4090, T4

EVERY_PACKAGE = {package.name: package.minimum or "1" for package in packages_of_formats()}
METHODS = {row.name: {"quant_method": row.name, "bits": 4} for row in FORMATS} | {
    "bitnet (autobitlinear)": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
    "mlx": {"bits": 4, "group_size": 64},
}
# The formats that load, each with the machines below on which it does.
LOADS = {
    **dict.fromkeys(("fp8", "mxfp8"), "cpu t4 4090 h100"),
    **dict.fromkeys(("mxfp4", "metal", "gemma"), "cpu t4 4090 h100 mac"),
    **dict.fromkeys(("compressed-tensors", "bitnet", "bitnet (autobitlinear)", "gptq", "awq"), "cpu t4 4090 h100"),
    **dict.fromkeys(("auto-round", "torchao", "aqlm", "quark"), "cpu t4 4090 h100"),
    **dict.fromkeys(("fbgemm_fp8", "fp_quant"), "h100"),
    **dict.fromkeys(("vptq", "fouroversix"), "t4 4090 h100"),
}
NEEDS_NOTHING = {"fp8", "mxfp8", "mxfp4", "metal", "gemma", "bitnet", "bitnet (autobitlinear)"}
MACHINES: Mapping[str, Machine] = {
    name: replace(machine, compiler="g++", packages={**machine.packages, **EVERY_PACKAGE})
    for name, machine in {"cpu": LAPTOP, "t4": T4, "4090": RTX_4090, "h100": H100, "mac": MAC}.items()
}


def stored(settings: Mapping[str, Any], *, tensors: tuple[Tensor, ...] = ()) -> ModelInfo:
    """A small model with a quantization_config."""
    small = tensors or (Tensor("model.embed_tokens.weight", "BF16", (1000, 64)),)
    key = "quantization_config" if "quant_method" in settings else "quantization"
    return replace(LLAMA3_8B, config={**LLAMA3_8B.config, key: settings}, tensors=small)


def outcome(name: str, machine: Machine, **config: Any) -> Plan | LlmctlError:
    settings = settings_from_mapping(config)
    try:
        return make_plan(PlanRequest(settings.config, machine, stored(METHODS[name])))
    except LlmctlError as error:
        return error


def test_every_method_of_this_transformers_has_a_row() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    others = {"bitsandbytes_4bit", "bitsandbytes_8bit", "llmctl", "llmctl_mxfp4"}
    assert set(AUTO_QUANTIZER_MAPPING) - others <= {row.name for row in FORMATS}


@pytest.mark.parametrize("name", METHODS)
def test_a_format_loads_on_the_machines_of_the_table_and_on_no_other(name: str) -> None:
    loads = {place for place, machine in MACHINES.items() if isinstance(outcome(name, machine), Plan)}
    assert loads == set(LOADS.get(name, "").split())
    for place in MACHINES.keys() - loads:
        error = outcome(name, MACHINES[place])
        assert isinstance(error, LlmctlError)
        assert error.hint
        assert error.details["quantization_method"] == name
        never = name not in LOADS
        assert (type(error) is ModelError) == never, "a format that loads nowhere is no fault of the machine"


@pytest.mark.parametrize("name", sorted(LOADS.keys() - NEEDS_NOTHING))
def test_a_missing_or_old_package_is_named_with_its_command(name: str) -> None:
    place = LOADS[name].split()[0]
    bare = replace(MACHINES[place], packages={"torch": "2.13.0"})
    error = outcome(name, bare)
    assert type(error) is MachineError
    assert str(error.hint).startswith("pip install ")
    for package in error.details["packages"]:
        assert package in error.message
        assert package in str(error.hint)
    first = next(package for package in packages_of_formats() if package.name == error.details["packages"][0])
    if first.minimum is not None:
        assert first.minimum in str(error.hint)
        old = replace(MACHINES[place], packages={**EVERY_PACKAGE, first.name: "0.0.1"})
        error = outcome(name, old)
        assert type(error) is MachineError
        assert (error.details["packages"], "0.0.1" in error.message) == ([first.name], True)


@pytest.mark.parametrize("name", sorted(NEEDS_NOTHING))
def test_formats_that_transformers_reads_by_itself_need_no_package(name: str) -> None:
    assert isinstance(outcome(name, replace(MACHINES["cpu"], packages={"torch": "2.13.0"})), Plan)


def test_a_gpu_that_is_too_old_is_told_the_capability() -> None:
    error = outcome("fbgemm_fp8", MACHINES["4090"])
    assert type(error) is MachineError
    assert error.details["compute_capability"] == "9.0"
    assert "8.9" in error.message


def test_the_devices_in_use_decide_not_those_of_the_machine() -> None:
    on_cpu = outcome("vptq", MACHINES["h100"], load={"device_map": "cpu"})
    assert type(on_cpu) is UserError
    assert on_cpu.hint == "use --device-map auto"
    on_apple = outcome("gptq", MACHINES["mac"])
    assert type(on_apple) is UserError
    assert on_apple.hint == "use --device-map cpu"
    assert isinstance(outcome("gptq", MACHINES["mac"], load={"device_map": "cpu"}), Plan)


def test_layers_that_torch_compiles_need_a_compiler_on_a_cpu_only() -> None:
    for place, expected in (("cpu", MachineError), ("h100", Plan)):
        assert type(outcome("bitnet", replace(MACHINES[place], compiler=""))) is expected


@pytest.mark.parametrize(
    ("name", "place", "dtype"),
    [("aqlm", "cpu", "float32"), ("awq", "h100", "float16"), ("fbgemm_fp8", "h100", "bfloat16"),
     ("gptq", "h100", "bfloat16")],
)  # fmt: skip
def test_the_dtype_is_one_that_the_layers_compute_in(name: str, place: str, dtype: str) -> None:
    plan = outcome(name, MACHINES[place])
    assert isinstance(plan, Plan)
    assert plan.model_kwargs["dtype"] == dtype


def test_a_requested_dtype_that_the_layers_do_not_compute_in_is_refused() -> None:
    error = outcome("aqlm", MACHINES["cpu"], load={"dtype": "bfloat16"})
    assert type(error) is UserError
    assert "--dtype float32" in str(error.hint)


def test_an_unknown_format_is_refused_by_name_and_an_undescribed_one_too() -> None:
    for settings, name in (({"quant_method": "new\x1bmethod"}, "new\x1bmethod"), ({"load": 1}, "unknown")):
        quantization = find_format(settings)
        refusal = quantization.backend.refusal(settings_from_mapping({}).config, H100, devices=("cuda:0",))
        assert type(refusal) is ModelError
        assert (quantization.backend.name, refusal.details["quantization_method"]) == (name, name)
    packed = (Tensor("model.layers.0.a.weight", "U8", (8, 4)), Tensor("model.layers.0.a.weight_scale", "F32", (8,)))
    info = replace(LLAMA3_8B, tensors=(*LLAMA3_8B.tensors, *packed))
    assert info.stored_quantization is not None, "packed weights that config.json does not mention"
    assert LLAMA3_8B.stored_quantization is None
    plain = (Tensor("model.layers.0.a.weight", "F8_E4M3", (8, 4)),)
    assert replace(LLAMA3_8B, tensors=plain).stored_quantization is None, "8 bits without scales are only a dtype"


def test_weights_that_are_unpacked_count_in_the_models_dtype() -> None:
    tensors = (
        Tensor("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (256, 128)),
        Tensor("model.layers.0.mlp.up_proj.weight_scale_inv", "F32", (2, 1)),
        Tensor("model.norm.weight", "BF16", (128,)),
    )
    info = stored({"quant_method": "fp8"}, tensors=tensors)
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        config = settings_from_mapping({"load": {"dtype": dtype}}).config
        plan = make_plan(PlanRequest(config, LAPTOP, info))
        assert sum(plan.memory.weights.values()) == size * (256 * 128 + 128)
    assert info.parameters == 256 * 128 + 128, "scales are no parameters"


def test_a_checkpoint_that_does_not_fit_unpacked_is_not_told_to_quantise() -> None:
    tensors = (Tensor("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (100_000, 100_000)),)
    info = stored({"quant_method": "fp8"}, tensors=tensors)
    (variant,) = survey(PlanRequest(settings_from_mapping({}).config, LAPTOP, info))
    assert (variant.verdict, variant.name) == ("too large", "as stored (fp8)"), "10 GB of files are 20 GB in RAM"
    with pytest.raises(MachineError) as refused:
        make_plan(PlanRequest(settings_from_mapping({}).config, LAPTOP, info))
    assert refused.value.details["weights_bytes"] == 2 * 10**10
    assert "--quant" not in str(refused.value.hint)


def test_packed_layers_are_not_spread_over_gpu_and_ram() -> None:
    tensors = tuple(Tensor(f"model.layers.{n}.mlp.up_proj.qweight", "I32", (20_000, 20_000)) for n in range(20))
    info = stored({"quant_method": "gptq", "bits": 4}, tensors=tensors)
    with pytest.raises(MachineError, match="partly in RAM"):
        make_plan(PlanRequest(settings_from_mapping({}).config, MACHINES["4090"], info))


def test_a_hypothetical_machine_has_the_packages() -> None:
    info = stored({"quant_method": "gptq", "bits": 4})
    (variant,) = survey(PlanRequest(settings_from_mapping({}).config, preset_machine("h100"), info))
    assert variant.verdict == "fits"
    assert variant.plan is not None
    assert "gptqmodel" in variant.plan.reason("quantization")
    assert variant.speed is None, "layers of other packages were not measured"


@pytest.mark.parametrize("value", [None, True, -1, 0, 10**9, 1.5, "4", [], [4], {}, {"a": [1]}, {"a": {"weights": {}}}])
def test_odd_settings_of_a_repository_are_no_bugs(value: Any) -> None:
    keys = ("bits", "config_groups", "format", "linear_class", "num_bits", "sym", "linear_weights_not_to_quantize")
    names = ("weight", "weight_packed", "qweight", "qzeros", "scales", "embedding_quantized")
    tensors = tuple(Tensor(f"model.layers.0.a.{name}", "I32", (8, 4)) for name in names)
    for method in METHODS:
        settings = {"quant_method": method, **dict.fromkeys(keys, value)}
        info = stored(settings, tensors=tensors)
        quantization = info.stored_quantization
        assert quantization is not None
        assert info.parameters >= 0
        for tensor in tensors:
            assert quantization.backend.stored_bytes(tensor, quantization, dtype_bytes=2) >= 0
        quantization.backend.adapt_config(dict(settings))
