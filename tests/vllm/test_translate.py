"""Translation of a configuration for vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.main import main
from llmctl.config import Config, settings_from_mapping
from llmctl.config.layers import read_only_file
from llmctl.config.schema import all_keys
from llmctl.errors import ConfigError
from llmctl.model.generation_config import check_generation_defaults
from llmctl.quant.registry import stored_quantization
from llmctl.vllm.arguments import Target
from llmctl.vllm.detection import serve_command
from llmctl.vllm.rules import RULES
from llmctl.vllm.translate import Translation, check, translate

ROOT = Path(__file__).resolve().parents[2]


def config(**sections: Any) -> Config:
    return settings_from_mapping(sections).config


def translated(target: Target | None = None, **sections: Any) -> Translation:
    return translate(config(**sections), target)


def after(arguments: tuple[str, ...], option: str) -> str:
    """Return the value of an option that occurs once."""
    assert arguments.count(option) == 1, arguments
    return arguments[arguments.index(option) + 1]


def reason_of(key: str, target: Target | None = None, **sections: Any) -> str:
    """Return the reason why a key cannot be translated."""
    one = next(one for one in translated(target, **sections).keys if one.key == key)
    assert one.outcome.kind == "not possible", one
    return one.outcome.text


def test_every_key_of_the_schema_has_a_rule() -> None:
    assert sorted(set(all_keys()) - set(RULES)) == []


def test_defaults_translate_to_the_model_safetensors_and_greedy_decoding() -> None:
    translation = translated(model={"id": "org/name"})
    assert translation.problems(settings_from_mapping({})) == []
    assert translation.arguments == (
        "--model", "org/name", "--served-model-name", "org/name", "--load-format", "safetensors",
        "--host", "127.0.0.1", "--port", "8000", "--shutdown-timeout", "30",
        "--generation-config", "vllm", "--override-generation-config", '{"temperature": 0.0}',
    )  # fmt: skip
    assert translation.environment == {"VLLM_NO_USAGE_STATS": "1"}


@pytest.mark.parametrize(
    ("chat", "variables"),
    [
        ({"thinking": False}, {"enable_thinking": False, "thinking": False}),
        ({"template_kwargs": {"a": 1}}, {"a": 1}),
        ({"thinking": True, "template_kwargs": {"thinking": 2}}, {"enable_thinking": True, "thinking": 2}),
    ],
)
def test_thinking_and_variables_are_defaults_of_the_template(chat: Any, variables: Any) -> None:
    arguments = translated(chat=chat).arguments
    assert json.loads(after(arguments, "--default-chat-template-kwargs")) == variables
    assert "final message" in reason_of("chat.prefill", chat={"prefill": "a"})


def test_several_gpus_and_machines() -> None:
    arguments = translate(read_only_file(ROOT / "configs/llama3-70b-two-machines.yaml").config).arguments
    assert after(arguments, "--tensor-parallel-size") == "4"
    assert after(arguments, "--pipeline-parallel-size") == "2"
    assert after(arguments, "--distributed-executor-backend") == "ray"
    assert after(arguments, "--dtype") == "bfloat16"
    assert after(arguments, "--max-model-len") == "8192"
    assert serve_command(arguments)[:2] == ("serve", "meta-llama/Meta-Llama-3-70B-Instruct")


def test_images_that_are_turned_off_are_refused_by_vllm_too() -> None:
    arguments = translated(load={"images": "never"}).arguments
    assert after(arguments, "--limit-mm-per-prompt") == '{"image": 0}'


def test_one_machine_loads_the_folder_and_several_load_the_id_and_commit() -> None:
    target = Target(model="/cache/snapshot", commit="c" * 40)
    one = translated(target, model={"id": "org/name", "revision": "v1"})
    assert after(one.arguments, "--model") == "/cache/snapshot"
    assert "--revision" not in one.arguments
    assert one.served_name == "org/name"
    several = translated(target, model={"id": "org/name"}, vllm={"distributed_executor_backend": "ray"})
    assert after(several.arguments, "--model") == "org/name"
    assert after(several.arguments, "--revision") == "c" * 40


@pytest.mark.parametrize(
    ("generation", "stored", "expected"),
    [
        ({}, {}, {"temperature": 0.0}),
        ({"temperature": 0}, {"do_sample": True, "temperature": 0.6}, {"temperature": 0.0}),
        ({}, {"do_sample": True, "temperature": 0.6}, {"temperature": 0.6, "top_k": 50, "top_p": 1.0}),
        ({"temperature": 0.7, "top_k": 0}, {}, {"temperature": 0.7, "top_k": 0, "top_p": 1.0}),
        (
            {"repetition_penalty": 1.2, "max_new_tokens": 9},
            {},
            {"temperature": 0.0, "repetition_penalty": 1.2, "max_new_tokens": 9},
        ),
    ],
)
def test_the_defaults_of_requests_are_those_of_transformers(
    generation: dict[str, Any], stored: dict[str, Any], expected: dict[str, Any]
) -> None:
    arguments = translated(Target(generation=check_generation_defaults(stored, {})), generation=generation).arguments
    assert json.loads(after(arguments, "--override-generation-config")) == expected


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("load.device_map", {"load": {"device_map": "balanced"}}),
        ("load.attn_implementation", {"load": {"attn_implementation": "sdpa"}}),
        ("load.max_memory", {"load": {"max_memory": {0: "20GiB"}}}),
        ("model.merge_adapters", {"model": {"adapters": "a/b", "merge_adapters": True}}),
        ("model.adapters", {"model": {"adapters": ["a/b", "c/d"]}}),
        ("model.adapters", {"model": {"adapters": {"id": "a/b", "scale": 0.5}}}),
        ("quantization.bits", {"quantization": {"bits": 4}}),
        ("quantization.bits", {"quantization": {"bits": 8}}),
        ("generation.num_beams", {"generation": {"num_beams": 4}}),
        ("generation.typical_p", {"generation": {"typical_p": 0.9}}),
        ("generation.stop_strings", {"generation": {"stop_strings": ["x"]}}),
        ("generation.cache_implementation", {"generation": {"cache_implementation": "static"}}),
        ("structure.regex", {"structure": {"regex": "a+"}}),
        ("chat.system", {"chat": {"system": "Be brief."}}),
        ("draft.id", {"draft": {"id": "a/b"}}),
        ("serve.max_queue", {"serve": {"max_queue": 9}}),
        ("serve.fetch_images", {"serve": {"fetch_images": True}}),
        ("tokenizer.model_max_length", {"tokenizer": {"model_max_length": 9}, "vllm": {"max_model_len": 8}}),
    ],
)
def test_a_key_without_an_equivalent_is_a_problem(key: str, sections: dict[str, Any]) -> None:
    assert reason_of(key, **sections)


def test_bitsandbytes_if_this_vllm_has_it() -> None:
    target = Target(has_bitsandbytes=True)
    arguments = translated(target, quantization={"bits": 4}).arguments
    assert after(arguments, "--quantization") == "bitsandbytes"
    assert after(arguments, "--load-format") == "bitsandbytes"
    assert "4 bits" in reason_of("quantization.bits", target, quantization={"bits": 8})
    assert "nf4" in reason_of("quantization.quant_type", target, quantization={"bits": 4, "quant_type": "fp4"})


def test_a_model_in_an_unsupported_format_is_a_problem() -> None:
    for method in ("llmctl", "bitsandbytes"):
        target = Target(quantization=stored_quantization({"quant_method": method}))
        assert method in reason_of("model.id", target, model={"id": "a/b"})


def test_the_models_own_generation_config_counts_too() -> None:
    target = Target(generation=check_generation_defaults({"no_repeat_ngram_size": 3}, {}))
    assert "generation_config.json" in reason_of("generation.no_repeat_ngram_size", target)


def test_settings_of_the_model_that_vllm_does_not_apply_are_named() -> None:
    own = {"min_new_tokens": 3, "suppress_tokens": [1], "penalty_alpha": 0.5, "top_k": 3, "do_sample": True}
    generation = check_generation_defaults(own, {"vocab_size": 9})
    assert translated(Target(generation=generation)).unused == ("penalty_alpha", "min_new_tokens", "suppress_tokens")
    assert translated(Target("batch", generation=generation)).unused == ("penalty_alpha", "suppress_tokens")


def test_the_models_id_works_beside_the_configured_name() -> None:
    arguments = translated(model={"id": "org/name"}, serve={"model_name": "smol"}).arguments
    at = arguments.index("--served-model-name")
    assert arguments[at + 1 : at + 3] == ("smol", "org/name")
    folder = translated(model={"id": "/models/mine/"}).arguments
    assert after(folder, "--served-model-name") == "mine"


def test_an_adapter_has_the_models_name() -> None:
    target = Target(adapter="/adapters/a", adapter_rank=10)
    arguments = translated(target, model={"id": "org/name", "adapters": "a/b"}).arguments
    assert after(arguments, "--served-model-name") == "org/name:base"
    module = json.loads(after(arguments, "--lora-modules"))
    assert module == {"name": "org/name", "path": "/adapters/a", "base_model_name": "org/name:base"}
    assert after(arguments, "--max-lora-rank") == "16"


def test_extra_arguments_are_passed_on_unchanged() -> None:
    more = {"enforce_eager": True, "enable_prefix_caching": False, "block-size": 16, "hf_overrides": {"a": 1}}
    arguments = " ".join(translated(vllm={"extra": more}).arguments)
    expected = '--enforce-eager --no-enable-prefix-caching --block-size 16 --hf-overrides {"a": 1}'
    assert expected in arguments


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"api_key": "top-secret"}, "set it in the environment"),
        ({"api-ke": "top-secret"}, "set it in the environment"),
        ({"hf_token": "top-secret"}, "llmctl login"),
        ({"dtype": "half"}, "set by load.dtype"),
        ({"no-trust-remote-code": True}, "set by model.trust_remote_code"),
        ({"tp": 2}, "set by vllm.tensor_parallel_size"),
        ({"--foo": 1}, "not an argument name"),
        ({"a b": 1}, "not an argument name"),
        ({"middleware": "x.y"}, "imports Python by name"),
        ({"trust_request_chat_template": True}, "unlimited time"),
    ],
)
def test_unsafe_or_duplicate_extra_arguments_are_refused_and_their_values_not_shown(
    extra: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_from_mapping({"vllm": {"extra": extra}})
    assert says in caught.value.message
    assert "top-secret" not in caught.value.message


def test_all_problems_are_reported_together_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("load:\n  device_map: balanced\nchat:\n  system: Be brief.\n")
    with pytest.raises(ConfigError) as caught:
        check(read_only_file(file), Target())
    assert [(one.where, one.key) for one in caught.value.problems] == [
        (f"{file}:2", "load.device_map"),
        (f"{file}:4", "chat.system"),
    ]


def test_a_batch_sets_in_each_request_what_a_server_cannot_have() -> None:
    sections = {
        "generation": {"stop_strings": ["x"], "logprobs": 30},
        "chat": {"system": "s"},
        "structure": {"regex": "a"},
    }
    translation = translated(Target("batch"), **sections)
    assert translation.problems(settings_from_mapping(sections)) == []
    assert after(translation.arguments, "--max-logprobs") == "30"
    assert "--override-generation-config" not in translation.arguments


def test_explain_shows_the_command_and_each_key(capfd: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "configs/llama3-70b-two-machines.yaml")
    assert main(["config", "explain", "--config", file]) == 0
    out = capfd.readouterr().out
    assert "vllm serve meta-llama/Meta-Llama-3-70B-Instruct" in out
    assert "--tensor-parallel-size 4 --pipeline-parallel-size 2 --distributed-executor-backend ray" in out
    assert main(["config", "explain", "--config", file, "--set", "chat.system=x", "--json"]) == 1
    document = json.loads(capfd.readouterr().out)
    assert document["schema"] == "llmctl.explain/1"
    assert not document["possible"]
    [problem] = [one for one in document["keys"] if one["outcome"] == "not possible"]
    assert (problem["key"], problem["from"]) == ("chat.system", "--set")


def test_explain_writes_values_of_every_type_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    values = ("model.id=org/name", "model.adapters=[org/one]", "serve.api_key_file=keys.txt")
    main(["config", "explain", "--engine", "vllm", *(part for one in values for part in ("--set", one)), "--json"])
    keys = {one["key"]: one["value"] for one in json.loads(capfd.readouterr().out)["keys"]}
    assert keys["model.adapters"][0]["id"] == "org/one"
    assert keys["serve.api_key_file"].endswith("keys.txt")


def test_vllm_makes_the_tokenizer_of_a_server_itself_and_gets_token_ids_in_a_batch() -> None:
    asked = {"source": "class", "fix_mistral_regex": True}
    assert "tokenizer_mode" in reason_of("tokenizer.fix_mistral_regex", tokenizer=asked)
    for target, section in ((Target(), asked | {"fix_mistral_regex": False}), (Target(purpose="batch"), asked)):
        kinds = {one.key: one.outcome.kind for one in translated(target, tokenizer=section).keys}
        assert {kinds[f"tokenizer.{key}"] for key in asked} == {"not needed"}
