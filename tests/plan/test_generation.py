"""The choice of generation settings: precedence of the user over the model, and the origin of each value."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import read_settings, settings_from_mapping
from llmctl.config.layers import superseded_sampling
from llmctl.errors import UserError
from llmctl.model.generation_config import check_generation_defaults
from llmctl.plan.decision import GenerationChoice
from llmctl.plan.generation import decide_generation
from support.machines import LLAMA3_8B

LLAMA = {"do_sample": True, "temperature": "0.6", "top_p": 0.9, "max_length": 4096, "eos_token_id": [128001, 128009]}


def choose(model: dict[str, Any], **sections: Any) -> GenerationChoice:
    info = replace(LLAMA3_8B, generation=check_generation_defaults(model, LLAMA3_8B.config))
    settings = settings_from_mapping(sections, where="--flag")
    return decide_generation(settings.config, info, origins=settings.origins)


def test_each_value_has_its_origin() -> None:
    choice = choose(LLAMA, generation={"top_p": 0.5})
    assert choice.document()["settings"] == {
        "max_new_tokens": {"value": 512, "from": "default"},
        "do_sample": {"value": True, "from": "top_p set (--flag)"},
        "temperature": {"value": 0.6, "from": "the model's generation_config.json, written as '0.6'"},
        "top_p": {"value": 0.5, "from": "--flag"},
        "top_k": {"value": 50, "from": "default"},
    }
    assert choice.from_model == {"temperature"}
    assert [one["name"] for one in choice.document()["left_out"]] == ["max_length"]


def test_the_decisions_show_every_value_and_everything_left_out() -> None:
    choice = choose({**LLAMA, "penalty_alpha": 0.6, "stop_strings": ["x" * 99], "suppress_tokens": [7]})
    shown = {decision.key: decision for decision in choice.decisions()}
    assert {*choice.arguments, "stop_strings", "penalty_alpha", "max_length"} == set(shown)
    assert "left out" in shown["penalty_alpha"].reason
    assert len(str(shown["stop_strings"].value)) < 90


@pytest.mark.parametrize("temperature", [0, 1e-40])
def test_a_temperature_of_zero_in_the_model_is_greedy_unless_the_user_samples(temperature: float) -> None:
    model = {"do_sample": True, "temperature": temperature, "top_k": 7}
    assert choose(model).arguments["do_sample"] is False
    sampled = choose(model, generation={"top_p": 0.9})
    assert (sampled.arguments["do_sample"], sampled.arguments["temperature"]) == (True, 1.0)
    assert [one.name for one in sampled.left_out] == ["temperature"]
    with pytest.raises(UserError, match="means greedy"):
        choose({}, generation={"temperature": temperature, "do_sample": True})


def test_a_temperature_in_the_model_alone_does_not_sample() -> None:
    assert choose({"temperature": 0.7}).arguments == {"max_new_tokens": 512, "do_sample": False}


@pytest.mark.parametrize("key", ["temperature", "top_k", "top_p", "min_p", "typical_p"])
def test_greedy_beside_a_key_that_only_sampling_uses_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"do_sample is false.*generation.{key}"):
        choose({}, generation={"do_sample": False, key: 1})
    assert choose({}, generation={"do_sample": False, "temperature": 0}).arguments["do_sample"] is False


@pytest.mark.parametrize(
    ("lower", "upper", "samples"),
    [
        ("temperature: 0.7\n  top_p: 0.9", "do_sample=false", False),
        ("do_sample: false", "temperature=0.7", True),
        ("do_sample: true", "temperature=0", False),
        ("temperature: 0", "do_sample=true", True),
    ],
)
def test_a_later_layer_decides_between_sampling_and_greedy(
    lower: str, upper: str, samples: bool, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"generation:\n  {lower}\n")
    settings = read_settings(config=file, assignments=[f"generation.{upper}"], environ={}, folder=tmp_path)
    assert decide_generation(settings.config, LLAMA3_8B).arguments["do_sample"] is samples


def test_a_later_do_sample_keeps_an_earlier_temperature_that_samples() -> None:
    assert superseded_sampling({"do_sample": True}, {"temperature": 0.7}) == set()


def test_an_empty_list_of_stop_strings_turns_off_those_of_the_model() -> None:
    model = {"stop_strings": ["a", "b"]}
    assert choose(model).stop_strings == ("a", "b")
    assert choose(model, generation={"stop_strings": ["c"]}).stop_strings == ("c",)
    assert choose(model, generation={"stop_strings": []}).stop_strings == ()


def test_settings_of_beams_count_only_with_beams() -> None:
    model = {"early_stopping": "never", "length_penalty": 2, "renormalize_logits": True}
    assert choose(model).arguments.keys().isdisjoint(model)
    assert choose(model, generation={"num_beams": 3}).arguments.items() >= {**model, "num_beams": 3}.items()


def test_what_could_break_a_structure_is_left_out_if_it_is_the_models_own() -> None:
    model = {"stop_strings": '"', "no_repeat_ngram_size": 2, "min_new_tokens": 9, "suppress_tokens": [7]}
    choice = choose(model, structure={"regex": "a+"})
    assert (choice.stop_strings, choice.arguments) == (
        (), {"max_new_tokens": 512, "do_sample": False, "suppress_tokens": [7]}
    )  # fmt: skip
    assert {one.name for one in choice.left_out} == {"stop_strings", "no_repeat_ngram_size", "min_new_tokens"}
    assert choose(model, structure={"regex": "a+"}, generation={"stop_strings": ["x"]}).stop_strings == ("x",)
