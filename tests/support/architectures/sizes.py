"""Sizes of tiny models: one table for all architectures, and rows for those that need more."""

from typing import Any

HIDDEN, HEADS, HEAD, VOCABULARY, CONTEXT, WINDOW = 64, 4, 16, 300, 512, 16


def _all(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


# Every field of a configuration that has one of these names gets the value.
SIZES: dict[str, Any] = {
    **_all(HIDDEN, "hidden_size d_model n_embd n_embed embed_dim dim lru_width word_embed_proj_dim embedding_size"),
    **_all(2 * HIDDEN, "intermediate_size ffn_hidden_size d_ff ffn_dim n_inner encoder_ffn_dim decoder_ffn_dim"),
    **_all(2 * HIDDEN, "intermediate_size_mlp block_ff_dim feed_forward_size dff"),
    **_all(HIDDEN, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **_all(HIDDEN, "shared_intermediate_size moe_shared_expert_intermediate_size moe_ffn_hidden_size"),
    **_all(4, "num_hidden_layers n_layer n_layers num_layers"),
    **_all(2, "encoder_layers decoder_layers"),
    **_all(HEADS, "num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_heads"),
    **_all(HEADS // 2, "num_key_value_heads num_kv_heads multi_query_group_num"),
    **_all(HEAD, "head_dim kv_channels v_head_dim qk_nope_head_dim kv_lora_rank swa_head_dim swa_v_head_dim"),
    **_all(HEAD // 2, "qk_rope_head_dim rotary_dim"),
    **_all(2 * HEAD, "q_lora_rank"),
    **_all(VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    **_all(CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length max_length"),
    **_all(WINDOW, "sliding_window attention_window_size chunk_size mamba_chunk_size local_attention"),
    **_all(WINDOW, "hidden_size_per_layer_input"),
    **_all(2 * WINDOW, "attention_chunk_size"),
    **_all(True, "use_sliding_window is_decoder"),
    "max_window_layers": 2,
    # mixtures of experts
    **_all(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_all(2, "num_experts_per_tok num_experts_per_token moe_topk top_k_experts moe_k"),
    **_all(1, "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace moe_layer_start_index"),
    # recurrent and convolutional layers
    **_all(WINDOW, "mamba_d_state state_size ssm_state_size mamba_d_head mamba_head_dim"),
    **_all(8, "mamba_n_heads mamba_num_heads"),
    **_all(1, "mamba_ngroups mamba_n_groups n_groups"),
    **_all(2, "mamba_expand n_mamba_heads linear_num_key_heads"),
    **_all(4, "linear_num_value_heads conv_kernel"),
    **_all(HEAD, "linear_key_head_dim linear_value_head_dim"),
    # indexed attention
    **_all(8, "index_n_heads"),  # with fewer, many scores are 0, and ties are broken in any way
    **_all(HEAD, "index_head_dim"),
    **_all(64, "index_topk"),
    # special tokens, as the tokenizer has them
    **_all(0, "bos_token_id eos_token_id pad_token_id"),
}

# Fields of a vision or audio tower.
TOWER_SIZES: dict[str, Any] = {
    **_all(HIDDEN, "hidden_size d_model embed_dim dim width out_hidden_size projection_dim text_hidden_size"),
    **_all(HIDDEN, "adapter_out_dim adapter_in_dim adapter_input_size codebook_dim image_token_embed_dim"),
    **_all(32, "base_channels latent_channels num_embeddings codebook_size output_channels"),
    **_all(2 * HIDDEN, "intermediate_size encoder_ffn_dim mlp_dim"),
    **_all(2, "num_hidden_layers depth layers encoder_layers num_layers"),
    **_all(HEADS, "num_attention_heads num_heads encoder_attention_heads heads"),
    "image_size": 28,
    "patch_size": 14,
}

# Lists with the kind of each layer. A tiny model gets each kind that the default configuration has.
LAYER_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")

_LONGROPE = {
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * (HEAD // 2),
        "long_factor": [1.0 + number for number in range(HEAD // 2)],
    },
}
_DENSE_AND_SPARSE = {"mlp_layer_types": ["dense", "sparse"] * 2}
_VOCABULARY_MAP = {
    "vocabulary_map": {
        "<image>": 290,
        "<|extra_200|>": 291,
        **{f"IMGIMG{letter}Z": 250 + number for number, letter in enumerate("ABCDEFGH")},
        **{f"<|visual token {number:06d}|>": 250 + number for number in range(8)},
    }
}
_MARKS = {"vision_start_token_id": 280, "vision_end_token_id": 281}
_ONE_KEY_PER_QUERY = {"num_key_value_heads": HEADS}


def _mrope(*sections: int, **more: Any) -> dict[str, Any]:
    """Return RoPE in sections for time, height and width, which add up to half of the rotated width."""
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more},
    }


_HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LOOPED = {"unpadded_vocab_size": VOCABULARY}
_ROPES = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    }
}
_BLT_PART = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "hidden_size_global": HIDDEN,
}

# Fields of a type's own configuration, in addition to the table above or instead of it. A name of a nested
# configuration has the fields of that configuration.
SPECIAL: dict[str, dict[str, Any]] = {
    "apertus1p5": {"image_token_offset": 200, "audio_token_offset": 232},
    "bailing_hybrid": {"layer_group_size": 2, **_ONE_KEY_PER_QUERY},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "vocab_size": VOCABULARY,
        "encoder_hash_byte_group_vocab": 500,
        "encoder_hash_byte_group_size": [3, 4],
        "patcher_config": {**_BLT_PART, "model_type": "blt_patcher", "vocab_size": VOCABULARY, "sliding_window": 64},
        "encoder_config": {**_BLT_PART, "model_type": "blt_local_encoder", "vocab_size": VOCABULARY},
        "decoder_config": {**_BLT_PART, "model_type": "blt_local_decoder", "vocab_size": VOCABULARY},
        "global_config": {**_BLT_PART, "model_type": "blt_global_transformer"},
    },
    "chameleon": _VOCABULARY_MAP,
    "cohere_compass_text": _ROPES | _WINDOWS,
    "cosmos3_edge": {"text_config": _mrope(2, 3, 3)},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": HIDDEN, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_ocr2_text": _DENSE_AND_SPARSE,
    "dory": {"n_input_layers": 1, "n_output_layers": 1} | _WINDOWS,
    "dots3_note_text": {
        **_ONE_KEY_PER_QUERY,
        **_all(HEADS, "swa_num_attention_heads swa_num_key_value_heads"),
        **_all(HEAD, "swa_kv_lora_rank swa_qk_nope_head_dim swa_v_head_dim"),
        "swa_q_lora_rank": 2 * HEAD,
        "swa_head_dim": HEAD + HEAD // 2,
    },
    "dots3_note_vision_encoder": {"pyramid_num_routed": [2, 2]},
    "emu3": _VOCABULARY_MAP,
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [HIDDEN, HIDDEN], **_mrope(3, 3, 2)},
    "falcon_h1": {"mamba_d_ssm": 128},
    "florence2": {"vision_config": {"patch_size": [7, 3, 3, 3], "embed_dim": [32] * 4, "num_heads": [4] * 4}},
    "gemma3n_text": {"num_kv_shared_layers": 2, **_WINDOWS},
    "glm4v_moe_text": _mrope(1, 1, 2, partial_rotary_factor=0.5),
    "glm4v_text": _mrope(2, 3, 3),
    "glm5_next_text": {**_ONE_KEY_PER_QUERY, "index_topk": 32, "qk_rope_head_dim": 0},
    "glm_ocr_text": _mrope(2, 3, 3),
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "granitemoehybrid": _HYBRID,
    "hunyuan_vl_text": _mrope(2, 2, 2, 2),
    "hy_v4_vl_text": _mrope(2, 1, 1),
    "inkling2_loop_text": _LOOPED,
    "inkling2_text": _LOOPED,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"head_dim": HEAD // 2},
    "mamba2": {"num_heads": 8, "head_dim": HEAD},
    "molmo2": {"vision_config": {"image_size": [28, 28]}, "adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_glimmer": {"projector_hidden_size": HIDDEN, "out_hidden_size": 4 * HIDDEN},
    "muse_spark": {"projector_hidden_size": HIDDEN, "out_hidden_size": 4 * HIDDEN},
    "muse_spark_audio": {"num_hidden_layers": 2, "patch_sizes": [4, 4], "hidden_sizes": [32, 64], "depths": [1, 1]},
    "muse_spark_text": {"moe_hidden_size": HIDDEN},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl_text": _mrope(2, 3, 3),
    "phi3": _LONGROPE,
    "phimoe": _LONGROPE
    | {"rope_parameters": {**_LONGROPE["rope_parameters"], "short_mscale": 1.1, "long_mscale": 1.3}},
    "qwen2_5_omni_text": _mrope(2, 3, 3),
    "qwen2_5_omni_thinker": _MARKS,
    "qwen2_5_vl_text": _mrope(2, 3, 3),
    "qwen2_vl_text": _mrope(2, 3, 3),
    "qwen3_omni_moe_thinker": _MARKS,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "unlimited_ocr_text": _DENSE_AND_SPARSE,
    "xlm": {"emb_dim": HIDDEN, "n_words": VOCABULARY, "causal": True},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}

# Types that cannot be built, with the reason.
_TIMM = "its vision tower needs the package timm"
_DRAFT = "it is a draft head that reads the hidden states of another model"
_DECODER = "transformers takes only a part of its configuration, the decoder"
CANNOT: dict[str, str] = {
    "diffusion_gemma": "it fills a canvas by diffusion instead of continuing a text",
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "inkling_mm_model": "its audio tower needs the package scipy",
    "musicgen": _DECODER,
    "musicgen_melody": _DECODER,
    "perception_lm": _TIMM,
    "t5gemma2": "it is an encoder-decoder model, which llmctl refuses",
    "pi0": "it generates the actions of a robot",
}
