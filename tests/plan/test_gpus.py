"""Decisions that depend on the GPUs that really hold layers: hand-made machines, nothing of which is here."""

from dataclasses import replace
from typing import Any

import pytest

from llmctl.config import settings_from_mapping
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Gpu, Machine
from llmctl.model.info import ModelInfo
from llmctl.plan import Plan, PlanRequest, make_plan
from llmctl.plan.survey import Variant, survey
from support.machines import (
    EVERYTHING,
    GIB,
    H100,
    LLAMA3_8B,
    LLAMA3_70B,
    MAC,
    RTX_4090,
    T4,
    TWO_4090,
    V100,
    decoder_info,
    gpu_machine,
)
from support.published_models import gemma3_27b, gpt_oss_20b, mixtral_8x7b

GTX_1660 = ("NVIDIA GeForce GTX 1660", (7, 5), 6)
MIXED = gpu_machine(("NVIDIA GeForce RTX 4090", (8, 9), 24), GTX_1660)
GEMMA, GPT_OSS, MIXTRAL = gemma3_27b(), gpt_oss_20b(), mixtral_8x7b()
SMALL = {"layers": 26, "hidden": 1152, "intermediate": 6912, "heads": 4, "kv_heads": 1, "context": 32768}
GEMMA_1B = decoder_info(source="google/gemma-3-1b-it", vocabulary=262144, tied=True, model_type="gemma3_text", **SMALL)
TIED_8B = decoder_info(
    source="a/tied", layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocabulary=128256, context=8192,
    tied=True,
)  # fmt: skip


def plan_for(machine: Machine, info: ModelInfo = LLAMA3_8B, **sections: Any) -> Plan:
    return make_plan(PlanRequest(settings_from_mapping(sections).config, machine, info))


def dtype_of(plan: Plan) -> Any:
    return plan.model_kwargs["dtype"]


def with_free(machine: Machine, *free_gib: float) -> Machine:
    gpus = zip(machine.gpus, free_gib, strict=True)
    return replace(machine, gpus=tuple(replace(gpu, free_bytes=int(free * GIB)) for gpu, free in gpus))


def without_code(machine: Machine, *numbers: int) -> Machine:
    gpus = (replace(gpu, torch_has_code=gpu.index not in numbers) for gpu in machine.gpus)
    return replace(machine, gpus=tuple(gpus))


# -- the dtype and the backend follow the devices that hold layers


def test_a_card_without_bfloat16_beside_a_4090_does_not_choose_the_dtype() -> None:
    for bits in (None, 4):
        plan = plan_for(MIXED, quantization={"bits": bits})
        assert (dtype_of(plan), plan.devices) == ("bfloat16", ("cuda:0",))
        assert "NVIDIA GeForce GTX 1660 left out: it computes no bfloat16" in plan.reason("device_map")
    assert plan.model_kwargs["quantization_config"]["bnb_4bit_compute_dtype"] == "bfloat16"


def test_a_card_without_bfloat16_is_used_where_the_other_has_no_room_and_the_reason_says_so() -> None:
    plan = plan_for(with_free(MIXED, 13.5, 5.5))
    assert (dtype_of(plan), plan.devices) == ("float16", ("cuda:0", "cuda:1"))
    assert plan.reason("dtype") == (
        "NVIDIA GeForce GTX 1660 has compute capability 7.5, bfloat16 needs 8.0 or more; "
        "the GPUs with bfloat16 alone have no room"
    )


def test_a_model_that_spills_anyway_stays_in_bfloat16_without_the_old_card() -> None:
    machine = replace(MIXED, ram_available_bytes=150 * GIB)
    plan = plan_for(machine, LLAMA3_70B)
    assert (dtype_of(plan), plan.devices) == ("bfloat16", ("cuda:0", "cpu"))


def test_a_model_quantised_beside_a_full_gpu_uses_the_backend_of_the_cpu() -> None:
    full = replace(with_free(RTX_4090, 0.4), kernels="avx2")
    plan = plan_for(full, quantization={"bits": 4})
    assert plan.devices == ("cpu",)
    assert plan.quantization is not None
    assert plan.quantization.backend.name == "llmctl"
    assert "no memory left" in plan.reason("device_map")


def test_a_full_t4_leaves_the_dtype_to_the_cpu() -> None:
    plan = plan_for(with_free(T4, 0.4))
    assert (dtype_of(plan), plan.devices) == ("bfloat16", ("cpu",))


def test_a_format_for_gpus_on_a_full_one_is_refused_with_the_reason() -> None:
    settings = {"quant_method": "vptq"}
    info = replace(LLAMA3_8B, config={**LLAMA3_8B.config, "quantization_config": settings})
    machine = with_free(replace(RTX_4090, packages={**RTX_4090.packages, "vptq": "1"}), 0.4)
    with pytest.raises(MachineError, match=r"the GPUs have no memory left .* can be loaded on an NVIDIA GPU only"):
        plan_for(machine, info)


def variants(machine: Machine, info: ModelInfo = LLAMA3_8B) -> dict[str, Variant]:
    request = PlanRequest(settings_from_mapping({}).config, machine, info, context=4096)
    return {variant.name: variant for variant in survey(request)}


def test_the_variants_of_a_full_gpu_are_those_of_the_cpu() -> None:
    assert list(variants(replace(with_free(T4, 0.4), kernels="avx2"))) == ["float32", "bfloat16", "8-bit", "4-bit"]


def test_the_variants_beside_an_old_card_are_in_bfloat16() -> None:
    found = variants(MIXED)
    assert list(found) == ["float32", "bfloat16", "8-bit", "4-bit nf4", "4-bit nf4 double"]
    assert {dtype_of(one.plan) for name, one in found.items() if one.plan and name != "float32"} == {"bfloat16"}


# -- several GPUs


def test_several_gpus_are_numbers_in_the_device_map_and_one_gpu_is_a_name() -> None:
    assert plan_for(TWO_4090).model_kwargs["device_map"] == {"": "cuda:0"}
    spread = plan_for(TWO_4090, LLAMA3_70B, quantization={"bits": 4, "use_double_quant": True})
    assert set(spread.model_kwargs["device_map"].values()) == {0, 1}
    assert set(spread.module_devices.values()) == {"cuda:0", "cuda:1"}
    asked = plan_for(TWO_4090, load={"device_map": {"model": "cuda:0", "lm_head": "cuda:1"}})
    assert asked.model_kwargs["device_map"] == {"model": 0, "lm_head": 1}
    spilled = plan_for(T4)
    assert set(spilled.model_kwargs["device_map"].values()) == {0, "cpu"}


def test_a_tied_head_is_on_the_device_of_its_embedding() -> None:
    places = plan_for(TWO_4090, TIED_8B, load={"device_map": "balanced"}).module_devices
    assert places["lm_head"] == places["model.embed_tokens"] == "cuda:0"
    assert places["model.norm"] == "cuda:1"
    own = plan_for(TWO_4090, load={"device_map": "balanced"}).module_devices
    assert own["lm_head"] == "cuda:1"


def test_a_device_map_that_separates_tied_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"lm_head and model\.embed_tokens share their weights"):
        plan_for(TWO_4090, TIED_8B, load={"device_map": {"model": 0, "lm_head": 1}})


def test_a_parameter_of_a_module_with_blocks_inside_is_placed_by_its_own_name() -> None:
    from llmctl.model.checkpoint import Tensor

    scale = Tensor("model.scale", "BF16", (4096,))
    info = replace(LLAMA3_8B, tensors=(*LLAMA3_8B.tensors, scale))
    device_map = plan_for(TWO_4090, info, load={"device_map": "balanced"}).model_kwargs["device_map"]
    assert "model.scale" in device_map
    assert "model" not in device_map, "accelerate would move every block to the device of their parent"


# -- attention


@pytest.mark.parametrize("machine", [T4, V100, MAC], ids=["t4", "v100", "mac"])
def test_the_reason_says_that_keys_are_repeated_where_no_fused_kernel_takes_shared_ones(machine: Machine) -> None:
    plan = plan_for(machine, quantization={} if machine is MAC else {"bits": 4})
    assert plan.model_kwargs["attn_implementation"] == "sdpa"
    assert "keys and values are repeated" in plan.reason("attn_implementation")
    every_head = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 4, "context": 64}
    info = decoder_info(source="a/b", vocabulary=9, **every_head)
    assert "repeated" not in plan_for(machine, info).reason("attn_implementation")


def test_attention_that_transformers_class_lacks_is_not_planned() -> None:
    assert plan_for(H100, GPT_OSS).model_kwargs["attn_implementation"] == "eager"
    assert plan_for(H100, GEMMA).model_kwargs["attn_implementation"] == "sdpa"
    reason = plan_for(H100, GEMMA).reason("attn_implementation")
    assert reason == "flash_attention_2 is not supported by transformers' Gemma3ForConditionalGeneration"
    with pytest.raises(UserError, match="not supported by transformers' GptOssForCausalLM"):
        plan_for(H100, GPT_OSS, load={"attn_implementation": "flash_attention_2"})


# -- float16 that overflows


def test_gemma_3_on_a_t4_computes_in_float32_if_it_fits_and_in_emulated_bfloat16_otherwise() -> None:
    plan = plan_for(T4, GEMMA_1B)
    assert dtype_of(plan) == "float32"
    assert plan.reason("dtype") == (
        "gemma3_text overflows in float16, and Tesla T4 has compute capability 7.5, bfloat16 needs 8.0 or more"
    )
    tight = plan_for(with_free(T4, 4.5), GEMMA_1B)
    assert (dtype_of(tight), tight.devices) == ("bfloat16", ("cuda:0",))
    assert "float32 takes too much memory" in tight.reason("dtype")
    assert "emulates it, slowly" in tight.reason("dtype")


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3", "gemma3_text", "gemma3n_text", "glm4", "gpt_oss"])
def test_families_that_overflow_are_never_given_float16_by_themselves(model_type: str) -> None:
    numbers = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "context": 64}
    info = decoder_info(source="a/b", vocabulary=100, model_type=model_type, **numbers)
    old_mac = replace(MAC, macos=(13, 6))
    for machine in (T4, V100, old_mac):
        assert dtype_of(plan_for(machine, info)) == "float32"
    stored = decoder_info(source="a/b", vocabulary=100, model_type=model_type, dtype="F16", **numbers)
    assert dtype_of(plan_for(H100, stored)) == "bfloat16"


def test_float16_asked_for_a_family_that_overflows_is_used_with_a_warning() -> None:
    plan = plan_for(T4, GEMMA_1B, load={"dtype": "float16"})
    [decision] = [decision for decision in plan.decisions if decision.key == "dtype"]
    assert decision.value == "float16"
    assert decision.is_note
    assert "overflows in float16, and its answers may be noise" in decision.reason


def test_quantised_layers_of_a_family_that_overflows_multiply_in_float32_without_bfloat16() -> None:
    arguments = plan_for(T4, GEMMA_1B, quantization={"bits": 4}).model_kwargs["quantization_config"]
    assert arguments["bnb_4bit_compute_dtype"] == "float32"


# -- cards that this torch has no code for


def test_a_card_that_torch_has_no_code_for_is_not_planned() -> None:
    plan = plan_for(without_code(V100, 0))
    assert plan.devices == ("cpu",)
    assert plan.reason("device_map") == (
        "this torch 2.13.0 has no code for Tesla V100-SXM2-32GB (compute capability 7.0)"
    )
    with pytest.raises(MachineError, match="has no code for Tesla V100") as caught:
        plan_for(without_code(V100, 0), load={"device_map": "cuda"})
    assert "install a torch that has it" in (caught.value.hint or "")


def test_a_card_that_torch_has_no_code_for_is_left_out_beside_another() -> None:
    machine = gpu_machine(("Tesla V100-SXM2-32GB", (7, 0), 32), ("NVIDIA GeForce RTX 3090", (8, 6), 24))
    plan = plan_for(without_code(machine, 0))
    assert plan.devices == ("cuda:1",)
    assert "Tesla V100-SXM2-32GB left out: this torch has no code for it" in plan.reason("device_map")


# -- Apple, AMD, Intel


@pytest.mark.parametrize(("macos", "dtype"), [((15, 1), "bfloat16"), ((14, 0), "bfloat16"), ((13, 6), "float16")])
def test_an_apple_gpu_computes_bfloat16_from_macos_14(macos: tuple[int, int], dtype: str) -> None:
    assert dtype_of(plan_for(replace(MAC, macos=macos))) == dtype


def test_a_mac_quantises_for_the_kernels_of_its_cpu_and_refuses_bitsandbytes() -> None:
    mac = replace(MAC, kernels="neon")
    plan = plan_for(mac, quantization={"bits": 4})
    assert plan.devices == ("cpu",)
    assert plan.quantization is not None
    assert plan.quantization.backend.name == "llmctl"
    assert "no backend quantises on an Apple GPU" in plan.reason("device_map")
    with pytest.raises(UserError, match="bitsandbytes has no kernels for Apple GPUs"):
        plan_for(mac, load={"device_map": "mps"}, quantization={"bits": 4})


def test_the_memory_of_an_apple_gpu_is_what_metal_may_use() -> None:
    gpu = replace(MAC.gpus[0], free_bytes=12 * GIB)
    with pytest.raises(MachineError, match=r"12\.9 GB of RAM are usable by the Apple GPU"):
        plan_for(replace(MAC, gpus=(gpu,)))


def test_a_gpu_that_shares_the_ram_does_not_spill_into_it() -> None:
    gpu = Gpu(0, "NVIDIA GB10", (12, 1), 120 * GIB, 110 * GIB, shares_ram=True)
    machine = replace(H100, gpus=(gpu,), ram_available_bytes=110 * GIB)
    assert plan_for(machine).devices == ("cuda:0",)
    with pytest.raises(MachineError, match="cpu has room for 0 B"):
        plan_for(machine, LLAMA3_70B)


MI300X = Gpu(0, "AMD Instinct MI300X", (9, 4), 192 * GIB, 191 * GIB, kind="rocm")
B580 = Gpu(0, "Intel(R) Arc(TM) B580 Graphics", (0, 0), 12 * GIB, int(11.5 * GIB), kind="xpu")


def test_an_amd_gpu_computes_bfloat16_and_flash_attention() -> None:
    plan = plan_for(replace(H100, gpus=(MI300X,)))
    assert (dtype_of(plan), plan.devices) == ("bfloat16", ("cuda:0",))
    assert plan.model_kwargs["attn_implementation"] == "flash_attention_2"
    plain = plan_for(replace(H100, gpus=(MI300X,), packages=EVERYTHING))
    assert plain.model_kwargs["attn_implementation"] == "sdpa"


def test_an_intel_gpu_is_used_and_its_memory_counted() -> None:
    machine = replace(H100, gpus=(B580,))
    plan = plan_for(machine, quantization={"bits": 4})
    assert (dtype_of(plan), plan.devices) == ("bfloat16", ("xpu:0",))
    assert plan.memory.overhead_bytes == plan_for(H100, quantization={"bits": 4}).memory.overhead_bytes
    assert plan.reason("attn_implementation").endswith("this machine has: Intel(R) Arc(TM) B580 Graphics")
    spilled = plan_for(machine)
    assert spilled.devices == ("xpu:0", "cpu")
    assert set(spilled.model_kwargs["device_map"].values()) == {0, "cpu"}


# -- quantised weights


def test_modules_that_the_user_skips_are_skipped_beside_the_output_head() -> None:
    section = {"bits": 4, "skip_modules": ["q_proj"]}
    tight = plan_for(gpu_machine(("NVIDIA GeForce RTX 3060", (8, 6), 4)), quantization=section)
    assert "cpu" in tight.devices
    for plan in (tight, plan_for(H100, quantization=section)):
        assert plan.model_kwargs["quantization_config"]["llm_int8_skip_modules"] == ["lm_head", "q_proj"]


def test_experts_that_bitsandbytes_leaves_in_16_bits_are_counted_so_and_the_reason_says_what_quantises_them() -> None:
    machine = gpu_machine(("NVIDIA H200", (9, 0), 141))
    plan = plan_for(machine, MIXTRAL, quantization={"bits": 4})
    experts = sum(2 * tensor.numel for tensor in MIXTRAL.tensors if tensor.is_expert)
    assert plan.memory.weights["cuda:0"] > experts > 90e9
    assert "the experts, 97 % of the weights, stay unquantised" in plan.reason("quantization")
    assert "--device-map cpu" in plan.reason("quantization")


STORED = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    },
}


@pytest.mark.parametrize("machine", [T4, RTX_4090, H100, replace(H100, gpus=(MI300X,)), replace(H100, gpus=(B580,))])
@pytest.mark.parametrize("kernels", [{}, {"kernels": "0.14.0", "triton": "3.6.0"}], ids=["bare", "kernels"])
@pytest.mark.parametrize("method", STORED)
def test_formats_that_are_unpacked_while_loading_are_counted_in_16_bits_on_every_gpu(
    method: str, kernels: dict[str, str], machine: Machine
) -> None:
    from llmctl.model.checkpoint import Tensor

    packed = {"mxfp4": Tensor("model.layers.0.mlp.experts.down_proj_blocks", "U8", (8, 512, 16, 16))}
    tensor = packed.get(method, Tensor("model.layers.0.mlp.down_proj.weight", "F8_E4M3", (512, 4096)))
    config = {**LLAMA3_8B.config, "quantization_config": STORED[method]}
    info = replace(LLAMA3_8B, config=config, tensors=(tensor,))
    packages = {**machine.packages, **kernels, "compressed-tensors": "0.15"}
    plan = plan_for(replace(machine, packages=packages), info)
    weights = 2 * 8 * 512 * 16 * 16 if method == "mxfp4" else 512 * 4096
    assert sum(plan.memory.weights.values()) == 2 * weights
    assert f"unpacked to {dtype_of(plan)} while loading" in plan.reason("quantization")


def test_each_of_several_gpus_has_room_for_the_activations_of_a_prompt() -> None:
    long = {"generation": {"max_new_tokens": 6000}}
    plan = plan_for(TWO_4090, LLAMA3_8B, load={"device_map": "balanced"}, **long)
    memory = plan.memory
    for gpu in TWO_4090.gpus:
        expected = memory.weights[gpu.device] + memory.kv_cache_bytes // 2 + memory.activation_bytes + 900_000_000
        assert memory.bytes_on(gpu.device) == pytest.approx(expected, abs=1)
    full = with_free(TWO_4090, 9.5, 9.5)
    spilled = plan_for(full, LLAMA3_8B, **long)
    room = full.gpus[0].free_bytes - 900_000_000 - memory.kv_cache_bytes // 2 - memory.activation_bytes
    assert spilled.memory.weights["cuda:0"] <= room
    assert "cpu" in spilled.memory.weights
