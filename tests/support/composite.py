"""Tiny random composite models: a language model with towers for images and sound, as checkpoints of the Hub."""

from pathlib import Path
from typing import Any

from support.tiny import write_tokenizer

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
_ALTERNATING = ["sliding_attention", "full_attention"]
_SIGLIP = {**_VISION, "model_type": "siglip_vision_model"}
# model type -> (text_config, other arguments of the configuration); image tokens are outside of the tiny vocabulary
COMPOSITES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava": ({"model_type": "llama"}, {"vision_config": {**_VISION, "model_type": "clip_vision_model"}}),
    "mistral3": (
        {"model_type": "mistral", "sliding_window": None},
        {"vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 16}},
    ),
    "qwen2_5_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
        {"vision_config": {**_QWEN_VISION, "fullatt_block_indexes": [0]}},
    ),
    "qwen3_vl": ({}, {"vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]}}),
    "smolvlm": ({"model_type": "llama"}, {"vision_config": _VISION}),
    "gemma3": (
        {"sliding_window": 16, "layer_types": _ALTERNATING},
        {"vision_config": _SIGLIP, "mm_tokens_per_image": 4},
    ),
    "gemma4": (
        {
            "sliding_window": 16,
            "layer_types": _ALTERNATING,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 0,
        },
        {
            "vision_config": {**_VISION, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16},
            "audio_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "output_proj_dims": 32,
            },
        },
    ),
    "llama4": (
        {
            "intermediate_size_mlp": 128,
            "num_local_experts": 2,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "attention_chunk_size": 16,
        },
        {
            "vision_config": {
                **_VISION,
                "vision_output_dim": 64,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
            }
        },
    ),
}


def write_composite(folder: Path, model_type: str, **changes: Any) -> Path:
    """A random composite model with its tokenizer. `changes` go into the configuration of its language model."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder)
    text, others = COMPOSITES[model_type]
    text = {**_TEXT, "vocab_size": size, **text, **changes}
    if model_type == "gemma4":
        text |= {"vocab_size_per_layer_input": size, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, text_config=text, tie_word_embeddings=False, **others)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(str(folder))
    return folder
