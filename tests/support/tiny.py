"""Tiny random models of real architectures, written as a Hub repository would hold them."""

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = (
    "the capital of france is paris . the capital of italy is rome . once upon a time there was a small model that "
    "wanted to speak . it read every book in the library and then it read them again . two plus two is four . "
)
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
# architecture -> (configuration class, model class, what differs from _COMMON)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None, "tie_word_embeddings": False}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": None, "tie_word_embeddings": False}),
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            # widths that bitsandbytes' kernels for CPUs take: blocks of 64 inputs, 32 outputs
            "head_dim": 32,
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 32,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
        },
    ),
}

_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + n for n in range(8)],
    "original_max_position_embeddings": 40,
}
# Architectures that only some tests need.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "bart": (
        "BartConfig",
        "BartForCausalLM",
        {
            "d_model": 64,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 128,
            "is_encoder_decoder": False,
            "is_decoder": True,
        },
    ),
    "roberta": ("RobertaConfig", "RobertaForCausalLM", {"is_decoder": True, "pad_token_id": 1}),
    "phi3_long": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {"original_max_position_embeddings": 40, "rope_parameters": _LONGROPE, "tie_word_embeddings": False},
    ),
    "phimoe_long": (
        "PhimoeConfig",
        "PhimoeForCausalLM",
        {
            "num_local_experts": 4,
            "original_max_position_embeddings": 40,
            "rope_parameters": {**_LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3},
            "tie_word_embeddings": False,
        },
    ),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"state_size": 8}),
    "llama4": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "attention_chunk_size": 32,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "tie_word_embeddings": False,
        },
    ),
}


def write_tokenizer(folder: Path, *, template: str | None = CHATML, text: str = _TEXT, size: int = 400) -> int:
    """A byte-level BPE tokenizer trained on a text, with ChatML's control tokens. Returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    return int(inner.get_vocab_size())


def write_model(folder: Path, architecture: str = "llama", *, dtype: str = "bfloat16", **changes: Any) -> Path:
    """A random model of `architecture` with its tokenizer. `changes` go into its configuration."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder)
    config_name, model_name, different = (ARCHITECTURES | OTHERS)[architecture]
    arguments = {} if architecture == "gpt2" else dict(_COMMON)
    arguments |= {
        "vocab_size": size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        **different,
        **changes,
    }
    config = getattr(transformers, config_name)(**arguments)
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)  # far enough from zero that greedy and sampled texts differ
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(str(folder))
    return folder


def write_any_model(folder: Path, model_type: str, *, dtype: str = "float32", **arguments: Any) -> Path:
    """A random model of any type that generates text, with its tokenizer. `arguments` are its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=write_tokenizer(folder), **ids, **arguments)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(str(folder))
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content.update(changes)
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(content), encoding="utf-8")
