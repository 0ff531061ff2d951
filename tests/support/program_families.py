"""A tiny model of every family that has a program of CPU kernels, and the groups of families that tests treat alike."""

from collections.abc import Callable
from pathlib import Path

from support import tiny

FOUR_EXPERTS: dict[str, object] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
DELTA_NET: dict[str, object] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
# transformers' class -> its tiny model: a name in tiny.ARCHITECTURES, or a separate (configuration, changes)
FAMILIES: dict[str, str | tuple[str, dict[str, object]]] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": ("MistralConfig", {"sliding_window": 8}),
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "SmolLM3ForCausalLM": ("SmolLM3Config", {"no_rope_layers": [1, 0], "use_sliding_window": False}),
    "Lfm2ForCausalLM": (
        "Lfm2Config",
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "conv_bias": True,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "Qwen3_5ForCausalLM": ("Qwen3_5TextConfig", DELTA_NET),
    "Lfm2MoeForCausalLM": (
        "Lfm2MoeConfig",
        {**FOUR_EXPERTS, "num_experts": 4, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    "Qwen3_5MoeForCausalLM": (
        "Qwen3_5MoeTextConfig",
        {
            **FOUR_EXPERTS,
            **DELTA_NET,
            "num_experts": 4,
            "shared_expert_intermediate_size": 96,
        },
    ),
    "Qwen3NextForCausalLM": (
        "Qwen3NextConfig",
        {
            **FOUR_EXPERTS,
            **DELTA_NET,
            "num_experts": 4,
            "shared_expert_intermediate_size": 96,
            "mlp_only_layers": [0],
        },
    ),
    "GraniteMoeHybridForCausalLM": (
        "GraniteMoeHybridConfig",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 96,
            "mamba_n_heads": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 12,
            "mamba_proj_bias": True,
            "time_step_limit": [0.0, 2.0],
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
    ),
    "MinistralForCausalLM": (
        "MinistralConfig",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Ministral3ForCausalLM": (
        "Ministral3Config",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 10,
                "llama_4_scaling_beta": 0.5,
            }
        },
    ),
    "Olmo2ForCausalLM": ("Olmo2Config", {}),
    "Olmo3ForCausalLM": (
        "Olmo3Config",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "GemmaForCausalLM": ("GemmaConfig", {}),
    "Gemma2ForCausalLM": (
        "Gemma2Config",
        {"sliding_window": 8, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0},
    ),
    "Gemma4ForCausalLM": (
        "Gemma4TextConfig",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "sliding_window": 8,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "vocab_size_per_layer_input": 400,
            "hidden_size_per_layer_input": 16,
            "use_double_wide_mlp": True,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
            "final_logit_softcapping": 30.0,
        },
    ),
    "MiniCPM3ForCausalLM": (
        "MiniCPM3Config",
        {
            "num_key_value_heads": 4,
            "head_dim": 8,
            "q_lora_rank": 24,
            "kv_lora_rank": 40,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "scale_emb": 3.0,
            "scale_depth": 1.0,
        },
    ),
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Glm4MoeLiteForCausalLM": (
        "Glm4MoeLiteConfig",
        {
            "num_key_value_heads": 4,
            "head_dim": 8,
            "q_lora_rank": 24,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "YoutuForCausalLM": (
        "YoutuConfig",
        {
            "num_key_value_heads": 4,
            "head_dim": 8,
            "q_lora_rank": None,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
        },
    ),
    "GlmForCausalLM": ("GlmConfig", {}),
    "Glm4ForCausalLM": ("Glm4Config", {}),
    "CohereForCausalLM": ("CohereConfig", {"logit_scale": 0.5}),
    "Cohere2ForCausalLM": (
        "Cohere2Config",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "GptOssForCausalLM": "gpt_oss",
    "PhimoeForCausalLM": (
        "PhimoeConfig",
        FOUR_EXPERTS | {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True, "sliding_window": None},
    ),
    "OlmoeForCausalLM": ("OlmoeConfig", FOUR_EXPERTS | {"num_experts": 4}),
    "Qwen2MoeForCausalLM": (
        "Qwen2MoeConfig",
        FOUR_EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 96, "mlp_only_layers": [0]},
    ),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", FOUR_EXPERTS | {"num_local_experts": 4, "residual_multiplier": 0.5}),
    "MiniMaxM2ForCausalLM": ("MiniMaxM2Config", FOUR_EXPERTS | {"num_local_experts": 4}),
    "Glm4MoeForCausalLM": (
        "Glm4MoeConfig",
        FOUR_EXPERTS
        | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "use_qk_norm": True, "routed_scaling_factor": 1.5},
    ),
    "Dots1ForCausalLM": (
        "Dots1Config",
        FOUR_EXPERTS
        | {
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "Ernie4_5_MoeForCausalLM": (
        "Ernie4_5_MoeConfig",
        FOUR_EXPERTS | {"moe_num_experts": 4, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    ),
    "NemotronHForCausalLM": (
        "NemotronHConfig",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "moe_shared_expert_intermediate_size": 96,
            "moe_latent_size": 32,
            "mamba_num_heads": 8,
            "mamba_head_dim": 12,
            "n_groups": 2,
            "ssm_state_size": 12,
        },
    ),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_layers": [1],
            "intermediate_size_mlp": 96,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
            "attention_chunk_size": 8,
            "floor_scale": 4,
            "attn_scale": 0.5,
            "tie_word_embeddings": False,
        },
    ),
    "DeepseekV2ForCausalLM": (
        "DeepseekV2Config",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.0,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "FalconH1ForCausalLM": (
        "FalconH1Config",
        {
            "mamba_d_ssm": 96,
            "mamba_n_heads": 8,
            "mamba_d_head": 12,
            "mamba_n_groups": 2,
            "mamba_d_state": 12,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": True,
            "ssm_multipliers": [0.5, 0.9, 0.7, 0.8, 0.6],
            "mlp_multipliers": [0.7, 0.8],
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.8,
            "attention_in_multiplier": 0.9,
            "attention_out_multiplier": 1.1,
            "key_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "lm_head_multiplier": 0.5,
        },
    ),
    "GraniteMoeSharedForCausalLM": (
        "GraniteMoeSharedConfig",
        FOUR_EXPERTS | {"num_local_experts": 4, "shared_intermediate_size": 96, "residual_multiplier": 0.5},
    ),
    "SeedOssForCausalLM": ("SeedOssConfig", {"attention_bias": True, "attention_out_bias": True}),
    "Exaone4ForCausalLM": (
        "Exaone4Config",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Ernie4_5ForCausalLM": ("Ernie4_5Config", {"use_bias": True}),
    "HeliumForCausalLM": ("HeliumConfig", {}),
    "CwmForCausalLM": (
        "CwmConfig",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ArceeForCausalLM": ("ArceeConfig", {}),
    "ApertusForCausalLM": ("ApertusConfig", {}),
    "HunYuanDenseV1ForCausalLM": ("HunYuanDenseV1Config", {}),
    "HunYuanMoEV1ForCausalLM": ("HunYuanMoEV1Config", {"num_experts": 4, "moe_topk": 2}),
    "Lfm3ForCausalLM": (
        "Lfm3Config",
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "sliding_attention"],
            "sliding_window": 8,
            "use_attention_gate": True,
            "use_sandwich_norm": True,
        },
    ),
    "Starcoder2ForCausalLM": ("Starcoder2Config", {"sliding_window": 8}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {"hidden_act": "gelu"}),
    "PhiForCausalLM": ("PhiConfig", {"qk_layernorm": True}),
    "StableLmForCausalLM": ("StableLmConfig", {"use_qkv_bias": True, "use_parallel_residual": True}),
    "GraniteForCausalLM": (
        "GraniteConfig",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    ),
}
_MOE = (name for name in FAMILIES if "moe" in name.lower() and "Hybrid" not in name)
MIXTURES = (
    *_MOE,
    "GptOssForCausalLM",
    "MixtralForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Llama4ForCausalLM",
    "Gemma4ForCausalLM",
    "NemotronHForCausalLM",
)
# transformers computes a linear recurrence in chunks, whose sums have another order
LINEAR_RECURRENT = (
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "NemotronHForCausalLM",
    "FalconH1ForCausalLM",
)
# transformers expands the latents of latent attention (MLA); a program computes with the latents
LATENT = (
    "MiniCPM3ForCausalLM",
    "YoutuForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Glm4MoeLiteForCausalLM",
)
# transformers' attention has a mask here (StableLM), or RoPE by complex numbers and another order of sums (Llama 4)
OTHER_ROUNDING = ("StableLmForCausalLM", "Llama4ForCausalLM")
# families whose layers continue a state
RECURRENT = ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Lfm3ForCausalLM", *LINEAR_RECURRENT)
# families whose quantised weights the tests read; those of most others do not differ from those of Llama
QUANTIZED = (
    *(name for name, row in FAMILIES.items() if isinstance(row, str)),
    "Llama4ForCausalLM",
    "Gemma4ForCausalLM",
    "NemotronHForCausalLM",
)


def family_folder(name: str, root: Path, tiny_models: Callable[[str], Path]) -> Path:
    """Return the folder of a class's tiny model, created once under `root`."""
    row = FAMILIES[name]
    if isinstance(row, str):
        return tiny_models(row)
    if not (root / name).exists():
        tiny.ARCHITECTURES[name] = (row[0], name, row[1])
        tiny.write_model(root / name, name)
    return root / name
