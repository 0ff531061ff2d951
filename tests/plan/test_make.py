"""Decisions and their reasons on preset machines."""

import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import Config, settings_from_mapping
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Gpu, Machine
from llmctl.model.generation_config import check_generation_defaults
from llmctl.model.info import ModelInfo
from llmctl.plan import Plan, PlanRequest, make_plan
from support.machines import (
    EVERYTHING,
    GIB,
    H100,
    LAPTOP,
    LLAMA3_8B,
    LLAMA3_70B,
    MAC,
    RTX_4090,
    T4,
    TWO_4090,
    V100,
    WORKSTATION,
    decoder_info,
    gpu_machine,
)


def config(**sections: Any) -> Config:
    return settings_from_mapping(sections).config


def plan_for(machine: Machine, info: ModelInfo = LLAMA3_8B, **sections: Any) -> Plan:
    return make_plan(PlanRequest(config(**sections), machine, info))


def chosen(plan: Plan) -> tuple[str, str, Any]:
    return (
        plan.model_kwargs["dtype"],
        plan.model_kwargs["attn_implementation"],
        set(plan.module_devices.values()),
    )


def test_an_h100_uses_flash_attention_in_the_stored_dtype() -> None:
    plan = plan_for(H100)
    assert chosen(plan) == ("bfloat16", "flash_attention_2", {"cuda:0"})
    assert "16.1 GB of weights fit" in plan.reason("device_map")


def test_a_4090_holds_llama_3_8b_in_half_precision() -> None:
    plan = plan_for(RTX_4090)
    assert chosen(plan) == ("bfloat16", "flash_attention_2", {"cuda:0"})


def test_a_t4_gets_float16_and_sdpa_and_spills_to_ram() -> None:
    plan = plan_for(T4)
    assert chosen(plan) == ("float16", "sdpa", {"cuda:0", "cpu"})
    assert plan.reason("dtype") == "Tesla T4 has compute capability 7.5, bfloat16 needs 8.0 or more"
    assert "spilled" in plan.reason("device_map")


def test_a_t4_gets_float16_and_sdpa_even_when_all_of_it_fits() -> None:
    plan = plan_for(T4, quantization={"bits": 4})
    assert chosen(plan) == ("float16", "sdpa", {"cuda:0"})
    assert plan.reason("attn_implementation") == (
        "flash_attention_2 needs compute capability 8.0 or more, Tesla T4 has 7.5; "
        "keys and values are repeated, since no fused kernel for this GPU takes shared ones"
    )
    assert plan.model_kwargs["quantization_config"]["bnb_4bit_compute_dtype"] == "float16"


def test_a_v100_is_too_old_for_bfloat16_and_flash_attention() -> None:
    assert chosen(plan_for(V100)) == ("float16", "sdpa", {"cuda:0"})


def test_the_reason_mentions_a_missing_flash_attn() -> None:
    plan = plan_for(gpu_machine(("NVIDIA H100", (9, 0), 80), flash=False))
    assert plan.model_kwargs["attn_implementation"] == "sdpa"
    assert "flash-attn, which is not installed" in plan.reason("attn_implementation")


def test_two_cards_share_what_one_cannot_hold() -> None:
    plan = plan_for(TWO_4090, LLAMA3_70B, quantization={"bits": 4, "use_double_quant": True})
    places = list(plan.module_devices.values())
    assert places == sorted(places), "blocks go to the devices in forward order"
    assert set(places) == {"cuda:0", "cuda:1"}
    assert "llm_int8_enable_fp32_cpu_offload" not in plan.model_kwargs["quantization_config"]
    assert set(plan.memory.weights) == {"cuda:0", "cuda:1"}


def test_balanced_puts_about_half_on_each_card() -> None:
    plan = plan_for(TWO_4090, load={"device_map": "balanced"})
    first, second = (plan.memory.weights[f"cuda:{n}"] for n in (0, 1))
    assert 0.95 < first / second < 1.05


def test_sequential_fills_the_first_card_before_the_second() -> None:
    plan = plan_for(TWO_4090, load={"device_map": "sequential", "max_memory": {0: "8GiB"}})
    assert 7.5 * GIB < plan.memory.weights["cuda:0"] <= 8 * GIB
    assert plan.memory.weights["cuda:1"] == 2 * LLAMA3_8B.parameters - plan.memory.weights["cuda:0"]


def test_max_memory_limits_the_ram_as_well() -> None:
    with pytest.raises(MachineError, match=r"8 GB of RAM are allowed by max_memory"):
        plan_for(WORKSTATION, load={"max_memory": {"cpu": "8GB"}})


def test_what_spills_to_ram_is_counted_unquantised() -> None:
    machine = gpu_machine(("NVIDIA GeForce RTX 3060", (8, 6), 12))
    plan = plan_for(machine, quantization={"bits": 8}, load={"max_memory": {0: "5GiB"}})
    spilled = [name for name, device in plan.model_kwargs["device_map"].items() if device == "cpu"]
    blocks = sum(name.startswith("model.layers.") for name in spilled)
    # a block of Llama 3 8B has 218,112,000 weights; the head and the embedding 525,336,576; two bytes each
    assert plan.memory.weights["cpu"] == 2 * (blocks * 218_112_000 + 128256 * 4096 + 4096)
    assert spilled[-2:] == ["model.norm", "lm_head"]


def test_a_quantised_spill_gets_the_explicit_map_and_the_flag_it_needs() -> None:
    plan = plan_for(gpu_machine(("NVIDIA GeForce RTX 3060", (8, 6), 4)), quantization={"bits": 4})
    places = plan.module_devices
    assert {"cuda:0", "cpu"} == set(places.values())
    assert "model.layers.0" in places
    assert plan.model_kwargs["quantization_config"]["llm_int8_enable_fp32_cpu_offload"] is True
    assert plan.model_kwargs["attn_implementation"] == "sdpa", "FlashAttention-2 cannot run on the part in RAM"


def test_nothing_ever_spills_to_disk() -> None:
    with pytest.raises(MachineError, match=r"too much for the GPUs and RAM.*cuda:0 has room"):
        plan_for(gpu_machine(("Tesla T4", (7, 5), 15), ram_gib=16), LLAMA3_70B)


def test_a_model_too_large_for_the_ram_is_refused_with_both_figures() -> None:
    with pytest.raises(MachineError) as caught:
        plan_for(LAPTOP, LLAMA3_8B)
    assert "the weights take 16.1 GB" in caught.value.message
    assert "12.2 GB of RAM are free" in caught.value.message
    assert "--quant 4bit" in (caught.value.hint or "")


def test_a_card_selected_by_number_must_hold_the_whole_model() -> None:
    with pytest.raises(MachineError, match="too much for cuda:0"):
        plan_for(T4, load={"device_map": "cuda:0"})


def test_a_missing_card_is_an_error_that_lists_the_existing_ones() -> None:
    with pytest.raises(MachineError, match=r"there is no cuda:1 on this machine: cuda:0 NVIDIA H100"):
        plan_for(H100, load={"device_map": "cuda:1"})


def test_max_memory_limits_the_weights_on_a_card() -> None:
    plan = plan_for(H100, load={"max_memory": {0: "8GiB"}})
    assert plan.memory.weights["cuda:0"] <= 8 * GIB
    assert plan.memory.weights["cpu"] > 0


def test_the_reason_mentions_a_cpu_only_torch_beside_a_card() -> None:
    machine = replace(WORKSTATION, idle_gpus=(Gpu(0, "NVIDIA RTX A4000", (8, 6), 16 * GIB, 16 * GIB),))
    plan = plan_for(machine)
    assert plan.devices == ("cpu",)
    assert "built without CUDA, so the NVIDIA RTX A4000 cannot be used" in plan.reason("device_map")


def test_a_cpu_uses_bfloat16_and_the_reason_gives_its_cost_without_the_instructions() -> None:
    assert plan_for(WORKSTATION).model_kwargs["dtype"] == "bfloat16"
    small = decoder_info(
        source="a/b", layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocabulary=100, context=64
    )
    plan = plan_for(LAPTOP, small)
    assert plan.model_kwargs["dtype"] == "bfloat16"
    assert "--dtype fp32" in plan.reason("dtype")


def test_float32_weights_stay_float32_on_a_cpu_unless_they_do_not_fit() -> None:
    numbers = {"layers": 24, "hidden": 2048, "intermediate": 8192, "heads": 16, "kv_heads": 16, "context": 2048}
    info = decoder_info(source="a/b", vocabulary=50_000, dtype="F32", **numbers)
    assert plan_for(WORKSTATION, info).model_kwargs["dtype"] == "float32"
    tight = replace(WORKSTATION, ram_available_bytes=info.parameters * 3)
    plan = plan_for(tight, info)
    assert plan.model_kwargs["dtype"] == "bfloat16"
    assert plan.reason("dtype") == "float32, as stored, does not fit in RAM"


def test_a_model_that_transformers_computes_in_float32_only_gets_it_and_is_refused_in_another_dtype() -> None:
    numbers = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "context": 64}
    info = decoder_info(source="a/b", vocabulary=100, model_type="xlnet", **numbers)
    for machine in (WORKSTATION, H100):
        assert plan_for(machine, info).model_kwargs["dtype"] == "float32"
    with pytest.raises(UserError, match="computes xlnet in float32 only"):
        plan_for(WORKSTATION, info, load={"dtype": "bfloat16"})


def test_an_apple_gpu_computes_in_bfloat16() -> None:
    assert chosen(plan_for(MAC)) == ("bfloat16", "sdpa", {"mps"})


@pytest.mark.parametrize("dtype", ["fp32", "float32"])
def test_flash_attention_in_float32_names_the_two_dtypes_that_work(dtype: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_for(H100, load={"dtype": dtype, "attn_implementation": "flash_attention_2"})
    assert caught.value.exit_code == 2
    assert "computes only in float16 or bfloat16, not in float32" in caught.value.message
    assert "--dtype bf16 or --dtype fp16" in (caught.value.hint or "")


def test_flash_attention_without_a_gpu_says_what_is_missing() -> None:
    with pytest.raises(MachineError) as caught:
        plan_for(WORKSTATION, load={"attn_implementation": "flash_attention_2"})
    assert caught.value.exit_code == 3
    assert "needs an NVIDIA GPU of compute capability 8.0 or more" in caught.value.message
    assert "flash-attn, which is not installed" in caught.value.message
    assert "--attn sdpa" in (caught.value.hint or "")


def test_flash_attention_on_an_old_card_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(MachineError, match=r"Tesla T4 has 7\.5"):
        plan_for(T4, quantization={"bits": 4}, load={"attn_implementation": "flash_attention_2"})


def test_requested_flash_attention_loads_float32_weights_in_half_precision() -> None:
    info = decoder_info(
        source="a/b", layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocabulary=9, context=64, dtype="F32"
    )
    plan = plan_for(H100, info, load={"attn_implementation": "flash_attention_2"})
    assert chosen(plan) == ("bfloat16", "flash_attention_2", {"cuda:0"})


def test_flash_attention_does_not_support_heads_wider_than_256() -> None:
    info = decoder_info(
        source="a/b", layers=2, hidden=2048, intermediate=64, heads=4, kv_heads=2, vocabulary=9, context=64
    )
    plan = plan_for(H100, info)
    assert "supports heads of at most 256, this model has 512" in plan.reason("attn_implementation")


@pytest.mark.parametrize("bits", [4, 8])
def test_flash_attention_combines_with_quantised_weights(bits: int) -> None:
    plan = plan_for(H100, quantization={"bits": bits}, load={"attn_implementation": "flash_attention_2"})
    assert plan.model_kwargs["attn_implementation"] == "flash_attention_2"
    assert plan.model_kwargs["quantization_config"][f"load_in_{bits}bit"] is True


def test_four_bits_mean_nf4_computed_in_half_precision_never_float32_by_accident() -> None:
    arguments = plan_for(H100, quantization={"bits": 4}).model_kwargs["quantization_config"]
    assert arguments == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    single = plan_for(H100, quantization={"bits": 4}, load={"dtype": "fp32"}).model_kwargs["quantization_config"]
    assert single["bnb_4bit_compute_dtype"] == "bfloat16"


def test_every_quantisation_key_reaches_the_library() -> None:
    four = {
        "bits": 4,
        "quant_type": "fp4",
        "use_double_quant": True,
        "compute_dtype": "fp32",
        "skip_modules": ["q_proj"],
    }
    arguments = plan_for(H100, quantization=four).model_kwargs["quantization_config"]
    assert arguments["bnb_4bit_quant_type"] == "fp4"
    assert arguments["bnb_4bit_use_double_quant"] is True
    assert arguments["bnb_4bit_compute_dtype"] == "float32"
    assert arguments["llm_int8_skip_modules"] == ["lm_head", "q_proj"]
    eight = {"bits": 8, "llm_int8_threshold": 4, "enable_fp32_cpu_offload": True}
    assert plan_for(H100, quantization=eight).model_kwargs["quantization_config"] == {
        "load_in_8bit": True,
        "llm_int8_threshold": 4.0,
        "llm_int8_enable_fp32_cpu_offload": True,
    }


def test_a_quantised_checkpoint_keeps_its_quantisation_and_refuses_another() -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    info = replace(LLAMA3_8B, config={**LLAMA3_8B.config, "quantization_config": stored})
    assert "quantization_config" not in plan_for(H100, info).model_kwargs
    assert "quantization_config" not in plan_for(H100, info, quantization={"bits": 4}).model_kwargs
    with pytest.raises(UserError, match=r"already quantised \(bitsandbytes 4-bit\)"):
        plan_for(H100, info, quantization={"bits": 8})


def test_quantising_without_bitsandbytes_names_the_package() -> None:
    machine = replace(H100, packages={k: v for k, v in EVERYTHING.items() if k != "bitsandbytes"})
    with pytest.raises(MachineError, match="bitsandbytes, which is not installed"):
        plan_for(machine, quantization={"bits": 8})


def test_an_explicit_map_must_cover_every_module() -> None:
    plan = plan_for(TWO_4090, load={"device_map": {"model": 0, "lm_head": "cuda:1"}})
    assert plan.memory.weights == {
        "cuda:0": sum(t.size_bytes for t in LLAMA3_8B.tensors) - 128256 * 4096 * 2,
        "cuda:1": 128256 * 4096 * 2,
    }
    with pytest.raises(UserError, match="leaves 1 modules without a device: lm_head"):
        plan_for(TWO_4090, load={"device_map": {"model": 0}})


@pytest.mark.parametrize("machine", [T4, RTX_4090, H100, TWO_4090, WORKSTATION])
def test_safetensors_and_no_remote_code_are_always_explicit_arguments(machine: Machine) -> None:
    plan = plan_for(machine)
    assert plan.model_kwargs["use_safetensors"] is True
    assert plan.model_kwargs["trust_remote_code"] is False
    assert plan.tokenizer_kwargs["trust_remote_code"] is False
    assert plan.environment["DISABLE_SAFETENSORS_CONVERSION"] == "1"
    assert ("GOMP_SPINCOUNT" in plan.environment) == (plan.devices == ("cpu",))
    assert {d.key for d in plan.decisions} >= {"device_map", "dtype", "attn_implementation", "quantization"}
    assert all(d.reason for d in plan.decisions)


def test_blocks_of_gpu_memory_grow_in_place_where_torch_supports_it() -> None:
    grows = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert grows.items() <= plan_for(H100).environment.items()
    on_cpu = plan_for(H100, load={"device_map": "cpu", "dtype": "bfloat16"})
    for plan in (on_cpu, plan_for(MAC), plan_for(replace(H100, system="Windows"))):
        assert "PYTORCH_ALLOC_CONF" not in plan.environment


def test_the_reason_for_trusted_code_names_the_repository() -> None:
    info = replace(LLAMA3_8B, config={**LLAMA3_8B.config, "auto_map": {"AutoModelForCausalLM": "x.Y"}})
    plan = plan_for(H100, info, model={"trust_remote_code": True})
    assert plan.model_kwargs["trust_remote_code"] is True
    assert "Python code of meta-llama/Meta-Llama-3-8B-Instruct will run" in plan.reason("trust_remote_code")
    assert plan_for(H100, LLAMA3_8B, model={"trust_remote_code": True}).model_kwargs["trust_remote_code"] is False


def test_greedy_unless_something_asks_for_sampling() -> None:
    assert plan_for(H100).generation_kwargs == {"max_new_tokens": 512, "do_sample": False}
    warm = plan_for(H100, generation={"temperature": 0.7}).generation_kwargs
    assert (warm["do_sample"], warm["temperature"]) == (True, 0.7)
    assert plan_for(H100, generation={"temperature": 0}).generation_kwargs["do_sample"] is False
    generation = check_generation_defaults({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, LLAMA3_8B.config)
    stored = replace(LLAMA3_8B, generation=generation)
    own = plan_for(H100, stored).generation_kwargs
    assert (own["do_sample"], own["temperature"], own["top_p"]) == (True, 0.6, 0.9)
    assert plan_for(H100, stored, generation={"do_sample": False}).generation_kwargs["do_sample"] is False
    with pytest.raises(UserError, match="temperature is 0"):
        plan_for(H100, generation={"temperature": 0, "do_sample": True})


def test_planning_is_pure_and_repeatable() -> None:
    assert plan_for(TWO_4090, LLAMA3_70B, quantization={"bits": 4}) == plan_for(
        TWO_4090, LLAMA3_70B, quantization={"bits": 4}
    )
    package = Path(sys.modules["llmctl.plan"].__file__ or "").parent
    imported = {
        name.split(".")[0]
        for file in package.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else
                     [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    }  # fmt: skip
    assert imported <= {"llmctl", "collections", "dataclasses", "functools", "math", "re", "typing", "pathlib"}


def test_options_that_save_memory_are_counted() -> None:
    from llmctl.plan.memory_advice import out_of_memory_error, possible_savings
    from llmctl.quant.bitsandbytes import BACKEND as BITSANDBYTES

    plan = plan_for(RTX_4090)
    found = {saving.option: saving.bytes / 1e9 for saving in possible_savings(plan, LLAMA3_8B, BITSANDBYTES)}
    # 16.06 GB of weights become 9.08 in 8-bit and 6.03 in nf4
    assert found == {"--quant 4bit": pytest.approx(10.03, abs=0.05), "--quant 8bit": pytest.approx(6.97, abs=0.05)}
    error = out_of_memory_error(plan, LLAMA3_8B, RTX_4090, config(), doing="loading")
    assert "planned 18.2 GB (weights 16.1 GB" in error.message
    assert "free were 25.2 GB on cuda:0" in error.message
    assert error.hint
    assert error.hint.startswith("--quant 4bit saves 10 GB")
    assert error.details["planned_bytes"] == plan.memory.total_bytes
    long = make_plan(PlanRequest(config(quantization={"bits": 4}), RTX_4090, LLAMA3_8B, context=8192))
    assert [saving.option.split()[0] for saving in possible_savings(long, LLAMA3_8B, BITSANDBYTES)] == ["half"]
