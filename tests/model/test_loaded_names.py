"""The names of weights in transformers' model, from its table of conversions."""

import pytest

from llmctl.model.loaded_names import renamer


@pytest.mark.parametrize(
    ("model_type", "stored", "loaded"),
    [
        ("deepseek_v4", "head.weight", "lm_head.weight"),
        ("deepseek_v4", "model.layers.0.hc_attn_fn", "model.layers.0.attn_hc.fn"),
        ("hy_v4_vl_text", "model.layers.0.hc_pre.hc_mlp_layer.hc_base", "model.layers.0.ffn_hc.base"),  # an alias
        ("kimi_k25", "layers.1.mlp.experts.0.down_proj.weight", "layers.1.mlp.experts.0.down_proj.weight"),
        ("exaone_moe", "layers.1.mlp.e_score_correction_bias", "layers.1.mlp.gate.e_score_correction_bias"),
    ],
)
def test_a_weight_gets_the_name_that_transformers_gives_it(model_type: str, stored: str, loaded: str) -> None:
    rename = renamer(("ForCausalLM", model_type))
    assert rename is not None
    assert rename(stored) == loaded
    assert rename(loaded) == loaded


@pytest.mark.parametrize("name", ["Gemma3", "Llava", "Mistral3", "AyaVision"])
def test_the_language_model_of_a_composite_has_the_name_of_its_part(name: str) -> None:
    rename = renamer((f"{name}ForConditionalGeneration", name.lower().replace("ayavision", "aya_vision")))
    assert rename is not None
    assert rename("language_model.model.layers.3.mlp.up_proj.weight") == (
        "model.language_model.layers.3.mlp.up_proj.weight"
    )
    assert rename("language_model.lm_head.weight") == "lm_head.weight"
    assert rename("model.language_model.layers.3.mlp.up_proj.weight").startswith("model.language_model.layers")


def test_a_model_without_an_entry_keeps_its_names() -> None:
    assert renamer(("LlamaForCausalLM", "llama")) is None
