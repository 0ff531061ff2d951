"""The rule that decides which weights are quantised."""

import pytest

from llmctl.quant.precision import Kind, kind_of


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (2048, 2048), Kind.LINEAR),
        ("model.layers.0.self_attn.k_proj.weight", (512, 2048), Kind.LINEAR),
        ("transformer.h.3.mlp.c_fc.weight", (768, 3072), Kind.LINEAR),
        ("model.visual.merger.mlp.0.weight", (1024, 1024), Kind.LINEAR),
        ("model.layers.1.mlp.experts.3.up_proj.weight", (768, 2048), Kind.EXPERTS),
        ("model.layers.1.mlp.experts.gate_up_proj", (64, 1536, 2048), Kind.EXPERTS),
        ("model.layers.1.block_sparse_moe.input_linear.weight", (32, 1024, 1536), Kind.EXPERTS),
        ("model.layers.1.mlp.experts.gate_up_proj_bias", (32, 1536), Kind.OTHER),
        ("model.layers.1.self_attention.experts.router.layer.weight", (8, 2048), Kind.KEPT),
        ("transformer.blocks.0.ffn.experts.mlp.w1", (4096, 2048), Kind.KEPT),
        ("lm_head.weight", (50000, 2048), Kind.HEAD),
        ("cls.predictions.decoder.weight", (30000, 768), Kind.HEAD),
        ("model.embed_tokens.weight", (50000, 2048), Kind.EMBEDDING),
        ("transformer.wpe.weight", (1024, 768), Kind.OTHER),
        ("model.embed_tokens_per_layer.weight", (50000, 8960), Kind.OTHER),
        ("model.layers.0.input_layernorm.weight", (2048,), Kind.OTHER),
        ("model.layers.0.mixer.conv1d.weight", (4096, 1, 4), Kind.OTHER),
        # scores for each expert or head, step sizes of state space models, and latents
        ("model.layers.0.mlp.gate.weight", (512, 2048), Kind.KEPT),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 2048), Kind.KEPT),
        ("model.layers.0.linear_attn.in_proj_ba.weight", (64, 2048), Kind.KEPT),
        ("backbone.layers.0.mixer.x_proj.weight", (80, 1536), Kind.KEPT),
        ("backbone.layers.0.mixer.dt_proj.weight", (1536, 48), Kind.KEPT),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), Kind.KEPT),
        ("model.layers.0.self_attn.kv_b_proj.weight", (32768, 512), Kind.KEPT),
    ],
)
def test_names_and_shapes_decide(name: str, shape: tuple[int, ...], kind: Kind) -> None:
    assert kind_of(name, shape) is kind
