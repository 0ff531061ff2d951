"""Options of faster decoding, planned without weights: exclusions, missing packages, and the draft's memory."""

from dataclasses import replace
from typing import Any

import pytest

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.draft import draft_config
from llmctl.model.info import ModelInfo
from llmctl.plan import Plan, PlanRequest, make_plan
from support.machines import EVERYTHING, LAPTOP, RTX_4090, decoder_info

SIZES: dict[str, Any] = {"intermediate": 4096, "heads": 16, "kv_heads": 8, "vocabulary": 32000, "context": 4096}
LARGE = decoder_info(source="org/large", layers=32, hidden=4096, **SIZES)
SMALL = decoder_info(source="org/small", layers=4, hidden=512, **SIZES)
WITH_COMPILER = replace(LAPTOP, compiler="g++")


def planned(
    machine: Machine = LAPTOP, info: ModelInfo = SMALL, *, beside: ModelInfo | None = None, **sections: Any
) -> Plan:
    return make_plan(PlanRequest(Config.model_validate(sections), machine, info, draft=beside))


def generation(machine: Machine = LAPTOP, info: ModelInfo = SMALL, **values: Any) -> Plan:
    return planned(machine, info, generation=values)


@pytest.mark.parametrize(
    ("values", "draft", "names"),
    [
        ({"prompt_lookup_num_tokens": 4}, "a/b", ["draft.id", "prompt_lookup_num_tokens"]),
        ({"prompt_lookup_num_tokens": 4, "num_beams": 2}, None, ["prompt_lookup_num_tokens", "beam search"]),
        ({"num_beams": 2}, "a/b", ["draft.id", "beam search"]),
        ({"compile": True, "num_beams": 2}, None, ["generation.compile", "beam search"]),
        ({"compile": True}, "a/b", ["draft.id", "generation.compile"]),
        ({"compile": True, "cache_implementation": "quantized"}, None, ["compile", "quantized"]),
        ({"prompt_lookup_num_tokens": 4, "cache_implementation": "static"}, None, ["dynamic cache", "static"]),
        ({"cache_config": {"backend": "fp8"}}, None, ["cache_config", "quantized cache"]),
    ],
)
def test_combinations_that_transformers_does_not_support_are_refused_by_name(
    values: dict[str, Any], draft: str | None, names: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        planned(WITH_COMPILER, generation=values, **({"draft": {"id": draft}} if draft else {}))
    assert all(name in caught.value.message for name in names)
    assert caught.value.hint


def test_a_cache_offloaded_from_a_gpu_needs_a_gpu() -> None:
    with pytest.raises(MachineError, match="moves keys and values from a GPU to RAM"):
        generation(cache_implementation="offloaded")
    plan = generation(RTX_4090, cache_implementation="offloaded")
    assert plan.generation_kwargs["cache_implementation"] == "offloaded"


@pytest.mark.parametrize("cache", ["static", "offloaded_static"])
def test_a_static_cache_is_compiled_only_if_that_is_asked_for(cache: str) -> None:
    plan = generation(RTX_4090, cache_implementation=cache)
    assert plan.generation_kwargs["cache_implementation"] == cache
    assert plan.generation_kwargs["disable_compile"] is True
    compiling = replace(RTX_4090, compiler="g++", packages={**RTX_4090.packages, "triton": "3.5.0"})
    assert "disable_compile" not in generation(compiling, compile=True).generation_kwargs
    assert "disable_compile" not in generation(compiling, compile=True, cache_implementation="static").generation_kwargs
    assert "disable_compile" not in generation(RTX_4090).generation_kwargs


def test_the_backend_of_a_quantised_cache_is_one_that_is_installed() -> None:
    bare, quanto = LAPTOP, replace(LAPTOP, packages={**EVERYTHING, "optimum-quanto": "0.2.7"})
    for machine, backend in ((bare, "fp8"), (quanto, "quanto")):
        plan = generation(machine, cache_implementation="quantized")
        assert plan.generation_kwargs["cache_config"] == {"backend": backend}
    with pytest.raises(MachineError) as caught:
        generation(bare, cache_implementation="quantized", cache_config={"backend": "hqq"})
    assert "pip install hqq" in str(caught.value.hint)


def test_fp8_needs_a_recent_transformers_and_takes_no_bits() -> None:
    old = replace(LAPTOP, packages={**EVERYTHING, "transformers": "5.18.1"})
    with pytest.raises(MachineError, match=r"needs transformers 5\.21, 5\.18\.1 is installed"):
        generation(old, cache_implementation="quantized")
    with pytest.raises(UserError, match="fp8 has no nbits"):
        generation(cache_implementation="quantized", cache_config={"nbits": 4})


@pytest.mark.parametrize("window", [{"sliding_window": 512}, {"layer_types": ["sliding_attention"] * 4}])
def test_a_sliding_window_is_not_quantised(window: dict[str, Any]) -> None:
    info = replace(SMALL, config={**SMALL.config, **window})
    with pytest.raises(UserError, match="layers without full attention"):
        generation(info=info, cache_implementation="quantized")
    off = replace(SMALL, config={**SMALL.config, "sliding_window": 512, "use_sliding_window": False})
    assert generation(info=off, cache_implementation="quantized").generation_kwargs["cache_implementation"]


def test_compiling_needs_a_compiler_and_supported_weights() -> None:
    with pytest.raises(MachineError, match=r"needs a C\+\+ compiler"):
        generation(LAPTOP, compile=True)
    with pytest.raises(MachineError, match="needs the package triton"):
        generation(replace(RTX_4090, compiler="g++"), compile=True)
    with pytest.raises(UserError, match="transformers does not compile"):
        planned(WITH_COMPILER, generation={"compile": True}, quantization={"bits": 4})
    plan = generation(WITH_COMPILER, compile=True)
    assert plan.generation_kwargs["cache_implementation"] == "static"
    assert "g++" in plan.reason("compile")


def test_the_draft_follows_dtype_and_bits_unless_it_has_its_own() -> None:
    asked = {"load": {"dtype": "float16"}, "quantization": {"bits": 4}}
    alike = planned(RTX_4090, LARGE, beside=SMALL, **asked).draft
    other = planned(
        RTX_4090, LARGE, beside=SMALL, **asked | {"draft": {"id": "org/small", "dtype": "bf16", "bits": "none"}}
    ).draft
    assert alike is not None
    assert other is not None
    assert alike.model_kwargs["dtype"] == "float16"
    assert alike.model_kwargs["quantization_config"]["load_in_4bit"]
    assert other.model_kwargs["dtype"] == "bfloat16"
    assert "quantization_config" not in other.model_kwargs


def test_the_draft_is_counted_and_reduces_the_memory_for_the_model() -> None:
    alone, both = planned(RTX_4090, LARGE), planned(RTX_4090, LARGE, beside=SMALL)
    assert both.draft is not None
    taken = sum(both.draft.memory.weights.values()) + both.draft.memory.working_bytes
    assert both.memory.total_bytes - alone.memory.total_bytes == taken > 0
    assert both.memory.peak_ram_bytes - alone.memory.peak_ram_bytes == taken
    weights = sum(alone.memory.weights.values())
    tight = replace(LAPTOP, ram_available_bytes=int((weights + alone.memory.working_bytes + taken / 2) / 0.95))
    planned(tight, LARGE, load={"dtype": "bfloat16"})
    with pytest.raises(MachineError, match="RAM are free"):
        planned(tight, LARGE, beside=SMALL, load={"dtype": "bfloat16"})


@pytest.mark.parametrize(("corrects", "inherited"), [(False, False), (True, None)])
def test_the_draft_reads_its_tokenizer_from_the_same_source(corrects: bool, inherited: bool | None) -> None:
    asked = {"source": "class", "fix_mistral_regex": corrects}
    section = draft_config(Config.model_validate({"draft": {"id": "org/small"}, "tokenizer": asked})).tokenizer
    assert (section.source, section.fix_mistral_regex) == ("class", inherited)


def test_trust_in_the_models_code_does_not_extend_to_the_draft() -> None:
    coded = replace(SMALL, config={**SMALL.config, "auto_map": {"AutoModelForCausalLM": "x.Y"}})
    plan = planned(LAPTOP, coded, beside=coded, model={"trust_remote_code": True})
    assert plan.draft is not None
    assert (plan.model_kwargs["trust_remote_code"], plan.draft.model_kwargs["trust_remote_code"]) == (True, False)
