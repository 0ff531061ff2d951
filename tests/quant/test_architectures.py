"""Quantisation of architectures with unusual layers: each is quantised where it can be, and the plan knows where."""

from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.cpu import kernels
from llmctl.loading import export
from llmctl.loading.model import LoadedModel
from llmctl.loading.prepare import prepare
from llmctl.transformers_compat import knows_architecture
from support.tiny import write_any_model

pytestmark = pytest.mark.skipif(kernels.load() is None, reason=f"no kernels: {kernels.missing()}")

WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
EXPERTS: dict[str, Any] = {**WIDE, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
BERT: dict[str, Any] = {**WIDE, "is_decoder": True}
# What is unusual -> model type, configuration, the ends of names that are packed, and of some that are not.
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "a tied head with a bias": ("bert", BERT, ("predictions.decoder", "word_embeddings", "self.query"), ()),
    "a head that is a subclass's": ("modernbert-decoder", WIDE, ("decoder", "attn.q_proj"), ()),
    "a subclass of a linear layer": (
        "falcon",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        ("self_attention.dense", "mlp.dense_h_to_4h"),
        (),
    ),
    "a scaled embedding tied to the head": ("biogpt", WIDE, ("output_projection", "embed_tokens", "fc1"), ()),
    "a weight whose dtype is read": (
        "falcon_mamba",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16},
        ("in_proj", "out_proj"),
        ("dt_proj",),
    ),
    "a weight that is read directly": (
        "rwkv",
        {"hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2, "context_length": 64},
        ("attention.key", "feed_forward.key"),
        ("attention.output", "feed_forward.value"),
    ),
    "experts multiplied by bmm": ("llama4_text", {**EXPERTS, "intermediate_size_mlp": 128}, ("experts",), ("router",)),
    "experts in modules of their own": (
        "jetmoe",
        {**EXPERTS, "num_key_value_heads": 2, "kv_channels": 16},
        ("mlp.input_linear", "mlp.output_linear"),
        ("router.layer",),
    ),
    "experts without a gate": (
        "nemotron_h",
        {**EXPERTS, "n_routed_experts": 4, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
         "layers_block_type": ["moe", "attention"], "n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 16},
        ("mixer.experts", "q_proj"),
        ("mixer.gate",),
    ),
    "experts with a gate of their own": (
        "minimax_m3_vl_text",
        {**EXPERTS, "num_key_value_heads": 2, "rotary_dim": 8},
        ("mlp.experts",),
        ("mlp.gate",),
    ),
    "weights divided while they are loaded": (
        "lara_mini",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
        ("in_proj_qkv", "in_proj_z", "q_proj"),
        ("in_proj_a", "in_proj_b"),
    ),
    "blocks that are passed several times": ("hrm_text", {**WIDE, "head_dim": 16}, ("mlp.down_proj",), ()),
    "projections to and from a narrow latent": (
        "minicpm3",
        {**WIDE, "hidden_size": 256, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 48,
         "qk_rope_head_dim": 16, "v_head_dim": 48},
        ("q_a_proj", "o_proj"),
        ("kv_b_proj",),
    ),
}  # fmt: skip


def load(folder: Path, bits: int = 4) -> LoadedModel:
    quantization = {"bits": bits, "cache": False}
    return llmctl.load(folder, quantization=quantization, load={"dtype": "bfloat16"}, generation={"max_new_tokens": 4})


@pytest.mark.parametrize("case", CASES)
def test_unusual_layers_are_quantised_or_kept_as_planned(case: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model_type, arguments, packed, kept = CASES[case]
    if not knows_architecture(model_type):
        pytest.skip(f"this transformers has no {model_type}")
    write_any_model(tmp_path, model_type, **arguments)
    loaded = load(tmp_path)
    is_packed = {name: hasattr(module, "packed") for name, module in loaded.model.named_modules()}
    for ends, expected in ((packed, True), (kept, False)):
        for end in ends:
            found = [is_packed[name] for name in is_packed if name.endswith(end)]
            assert found, f"{model_type} has no {end}"
            assert set(found) == {expected}, end
    assert loaded.measured.device_bytes["cpu"] == pytest.approx(loaded.plan.memory.weights["cpu"], rel=0.03)
    ids = torch.tensor([[5, 17, 42, 99, 3, 8]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        ours, exact = loaded.model(ids, use_cache=False).logits.float(), plain(ids, use_cache=False).logits
    centred = exact - exact.mean(dim=-1, keepdim=True)
    assert (ours - exact).norm() < 0.5 * centred.norm()


@pytest.mark.parametrize(
    "case", ["experts without a gate", "a weight that is read directly", "a tied head with a bias"]
)
def test_they_are_saved_and_loaded_again(case: str, tmp_path: Path) -> None:
    model_type, arguments, _, _ = CASES[case]
    write_any_model(tmp_path / "plain", model_type, **arguments)
    asked = {"model": {"id": str(tmp_path / "plain")}, "quantization": {"bits": 4}, "load": {"dtype": "bfloat16"}}
    export.quantize(prepare(settings_from_mapping(asked)), tmp_path / "saved")
    loaded, again = load(tmp_path / "plain"), llmctl.load(tmp_path / "saved", generation={"max_new_tokens": 4})
    assert again.measured.quantization == loaded.measured.quantization
    assert again.measured.device_bytes == loaded.measured.device_bytes
    assert llmctl.generate(again, "the").token_ids == llmctl.generate(loaded, "the").token_ids


def test_the_plan_names_what_it_keeps(tmp_path: Path) -> None:
    model_type, arguments, _, _ = CASES["a weight that is read directly"]
    write_any_model(tmp_path, model_type, **arguments)
    plan = prepare(settings_from_mapping({"model": {"id": str(tmp_path)}, "quantization": {"bits": 8}})).plan
    assert plan.quantization is not None
    assert plan.quantization.arguments["skip_modules"] == ["attention.output", "feed_forward.value"]
    assert "of the weights stay" in plan.reason("quantization")
