"""Random checkpoints in the shapes of published models: speed does not depend on the values of the weights."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The architecture and the sizes of a published model, perhaps with fewer layers and experts.

    Attributes:
        name: The name in the table.
        config_class: The configuration class of transformers.
        model_class: The model class of transformers.
        config: The arguments of the configuration.
    """

    name: str
    config_class: str
    model_class: str
    config: dict[str, Any]


def _every(count: int, layers: int, last: str, others: str) -> list[str]:
    """Return the types of layers: every `count`th is `last`."""
    return [others if (index + 1) % count else last for index in range(layers)]


SHAPES: dict[str, Shape] = {
    "qwen3.5": Shape(
        "Qwen 3.5 0.8B",
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {
            "vocab_size": 248320,
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 16,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "layer_types": _every(4, 24, "full_attention", "linear_attention"),
            "tie_word_embeddings": True,
        },
    ),
    "lfm2": Shape(
        "LFM2 350M",
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {
            "vocab_size": 65536,
            "hidden_size": 1024,
            "intermediate_size": 6656,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "layer_types": ["full_attention" if n in (2, 5, 8, 10, 12, 14) else "conv" for n in range(16)],
        },
    ),
    "gpt-oss": Shape(
        "gpt-oss, 8 layers of 16 experts",
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "num_hidden_layers": 8,
            "num_local_experts": 16,
            "layer_types": _every(2, 8, "full_attention", "sliding_attention"),
        },
    ),
    "gemma4": Shape(
        "Gemma 4 E2B (text)",
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 35,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "layer_types": _every(5, 35, "full_attention", "sliding_attention"),
            "num_kv_shared_layers": 20,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
    ),
    "granite4": Shape(
        "Granite 4 hybrid 1B",
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {
            "vocab_size": 100352,
            "hidden_size": 1536,
            "intermediate_size": 4096,
            "shared_intermediate_size": 4096,
            "num_hidden_layers": 40,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "layer_types": ["attention" if n in (5, 15, 25, 35) else "mamba" for n in range(40)],
            "mamba_n_heads": 48,
            "mamba_d_state": 128,
            "mamba_d_head": 64,
            "position_embedding_type": "nope",
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0078125,
            "residual_multiplier": 0.22,
            "logits_scaling": 6.0,
            "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
        },
    ),
    "olmo3": Shape(
        "OLMo 3 1B",
        "Olmo3Config",
        "Olmo3ForCausalLM",
        {
            "vocab_size": 100352,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "layer_types": _every(4, 16, "full_attention", "sliding_attention"),
            "max_position_embeddings": 8192,
        },
    ),
    "glm4.7-flash": Shape(
        "GLM-4.7 Flash, 8 layers of 16 experts",
        "Glm4MoeLiteConfig",
        "Glm4MoeLiteForCausalLM",
        {
            "num_hidden_layers": 8,
            "n_routed_experts": 16,
            "mlp_layer_types": ["dense", *["sparse"] * 7],
        },
    ),
}


def make_checkpoint(shape: Shape, folder: Path) -> None:
    """Save a random checkpoint in bfloat16 with a tiny tokenizer."""
    import torch
    import transformers

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.tiny import write_tokenizer

    config = getattr(transformers, shape.config_class)(**shape.config, dtype="bfloat16")
    with torch.device("meta"):
        model = getattr(transformers, shape.model_class)(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    random = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            _fill(parameter, random)
        for buffer in model.buffers():
            buffer.zero_()
    model.save_pretrained(folder, max_shard_size="1GB")
    write_tokenizer(folder)


def _fill(parameter: Any, random: Any) -> None:
    """Fill vectors, such as the weights of norms, with ones, and matrices with random numbers, repeated."""
    flat = parameter.view(-1)
    if parameter.dim() < 2:
        flat.fill_(1)
        return
    for start in range(0, len(flat), len(random)):
        part = flat[start : start + len(random)]
        part.copy_(random[: len(part)])
