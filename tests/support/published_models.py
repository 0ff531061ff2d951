"""Models of the Hub by their published numbers: config.json, and the names and shapes of every tensor."""

from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo
from support.machines import decoder_info


def mixtral_8x7b() -> ModelInfo:
    """https://huggingface.co/mistralai/Mixtral-8x7B-Instruct-v0.1/blob/main/config.json"""
    dense = decoder_info(
        source="mistralai/Mixtral-8x7B-Instruct-v0.1",
        layers=32,
        hidden=4096,
        intermediate=14336,
        heads=32,
        kv_heads=8,
        vocabulary=32000,
        context=32768,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    tensors = [tensor for tensor in dense.tensors if ".mlp." not in tensor.name]
    for n in range(32):
        moe = f"model.layers.{n}.block_sparse_moe"
        tensors.append(Tensor(f"{moe}.gate.weight", "BF16", (8, 4096)))
        for e in range(8):
            tensors += [Tensor(f"{moe}.experts.{e}.w{k}.weight", "BF16", (14336, 4096)) for k in (1, 2, 3)]
    return ModelInfo(source=dense.source, config={**dense.config, "model_type": "mixtral"}, tensors=tuple(tensors))


def gemma3_27b() -> ModelInfo:
    """https://huggingface.co/google/gemma-3-27b-it/blob/main/config.json, with the language model's tensors alone."""
    kinds = ["full_attention" if (n + 1) % 6 == 0 else "sliding_attention" for n in range(62)]
    plain = decoder_info(
        source="google/gemma-3-27b-it",
        layers=62,
        hidden=5376,
        intermediate=21504,
        heads=32,
        kv_heads=16,
        vocabulary=262208,
        context=131072,
        tied=True,
        head_dim=128,
        sliding_window=1024,
        layer_types=kinds,
        model_type="gemma3_text",
    )
    # decoder_info makes heads of hidden / heads = 168; here they are 128 wide
    shapes = {"q_proj": (4096, 5376), "k_proj": (2048, 5376), "v_proj": (2048, 5376), "o_proj": (5376, 4096)}
    tensors = [
        Tensor(f"language_model.{tensor.name}", "BF16", shapes.get(tensor.name.split(".")[-2], tensor.shape))
        for tensor in plain.tensors
    ]
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": plain.config,
        "tie_word_embeddings": True,
    }
    return ModelInfo(source=plain.source, config=config, tensors=tuple(tensors))


def gpt_oss_20b() -> ModelInfo:
    """https://huggingface.co/openai/gpt-oss-20b/blob/main/config.json: experts in MXFP4, the rest in bfloat16."""
    layers, hidden, experts = 24, 2880, 32
    tensors = [Tensor("model.embed_tokens.weight", "BF16", (201088, hidden))]
    for n in range(layers):
        block = f"model.layers.{n}"
        for name, outputs, inputs in (("q", 4096, hidden), ("k", 512, hidden), ("v", 512, hidden), ("o", hidden, 4096)):
            tensors += [
                Tensor(f"{block}.self_attn.{name}_proj.weight", "BF16", (outputs, inputs)),
                Tensor(f"{block}.self_attn.{name}_proj.bias", "BF16", (outputs,)),
            ]
        tensors += [
            Tensor(f"{block}.self_attn.sinks", "BF16", (64,)),
            Tensor(f"{block}.mlp.router.weight", "BF16", (experts, hidden)),
            Tensor(f"{block}.mlp.router.bias", "BF16", (experts,)),
            Tensor(f"{block}.input_layernorm.weight", "BF16", (hidden,)),
            Tensor(f"{block}.post_attention_layernorm.weight", "BF16", (hidden,)),
        ]
        for name, outputs in (("gate_up_proj", 2 * hidden), ("down_proj", hidden)):
            tensors += [
                Tensor(f"{block}.mlp.experts.{name}_blocks", "U8", (experts, outputs, hidden // 32, 16)),
                Tensor(f"{block}.mlp.experts.{name}_scales", "U8", (experts, outputs, hidden // 32)),
                Tensor(f"{block}.mlp.experts.{name}_bias", "BF16", (experts, outputs)),
            ]
    tensors += [
        Tensor("model.norm.weight", "BF16", (hidden,)),
        Tensor("lm_head.weight", "BF16", (201088, hidden)),
    ]
    kinds = ["full_attention" if n % 2 else "sliding_attention" for n in range(layers)]
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": kinds,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    }
    return ModelInfo(source="openai/gpt-oss-20b", config=config, tensors=tuple(tensors))
