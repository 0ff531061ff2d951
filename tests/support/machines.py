"""Machines and models by hand: what they are is written down, nothing of it is here."""

from typing import Any

from llmctl.machine.detection import Gpu, Machine
from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo

GIB = 2**30
EVERYTHING = {"torch": "2.13.0", "transformers": "5.24.0", "bitsandbytes": "0.50.2", "accelerate": "1.15.0"}
WITH_FLASH = EVERYTHING | {"flash_attn": "2.8.3"}


def gpu_machine(*gpus: tuple[str, tuple[int, int], float], ram_gib: float = 64, flash: bool = True) -> Machine:
    """A Linux machine with the given cards: (name, capability, memory in GiB), all of it free but 0.5 GiB."""
    cards = tuple(
        Gpu(n, name, capability, int(gib * GIB), int((gib - 0.5) * GIB))
        for n, (name, capability, gib) in enumerate(gpus)
    )
    return Machine(
        system="Linux",
        architecture="x86_64",
        ram_total_bytes=int(ram_gib * GIB),
        ram_available_bytes=int(ram_gib * 0.9 * GIB),
        physical_cores=16,
        cpu_features=frozenset({"avx2"}),
        gpus=cards,
        packages=WITH_FLASH if flash else EVERYTHING,
        torch_cuda="13.0",
    )


T4 = gpu_machine(("Tesla T4", (7, 5), 15))
V100 = gpu_machine(("Tesla V100-SXM2-32GB", (7, 0), 32))
RTX_4090 = gpu_machine(("NVIDIA GeForce RTX 4090", (8, 9), 24))
H100 = gpu_machine(("NVIDIA H100 80GB HBM3", (9, 0), 80))
TWO_4090 = gpu_machine(("NVIDIA GeForce RTX 4090", (8, 9), 24), ("NVIDIA GeForce RTX 4090", (8, 9), 24))
LAPTOP = Machine("Linux", "x86_64", 16 * GIB, 12 * GIB, 4, frozenset({"avx2"}), (), EVERYTHING)
WORKSTATION = Machine("Linux", "x86_64", 64 * GIB, 60 * GIB, 16, frozenset({"avx2", "avx512_bf16"}), (), EVERYTHING)
MAC = Machine(
    "Darwin",
    "arm64",
    36 * GIB,
    28 * GIB,
    12,
    frozenset(),
    (Gpu(0, "Apple GPU", (0, 0), 36 * GIB, 28 * GIB, kind="mps", shares_ram=True),),
    EVERYTHING,
)


def decoder_info(
    *,
    source: str,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    context: int,
    dtype: str = "BF16",
    tied: bool = False,
    **config: Any,
) -> ModelInfo:
    """A Llama-shaped model from its published numbers: config.json and the shapes of every tensor."""
    width = hidden // heads
    tensors = [Tensor("model.embed_tokens.weight", dtype, (vocabulary, hidden))]
    for n in range(layers):
        block = f"model.layers.{n}"
        tensors += [
            Tensor(f"{block}.self_attn.q_proj.weight", dtype, (heads * width, hidden)),
            Tensor(f"{block}.self_attn.k_proj.weight", dtype, (kv_heads * width, hidden)),
            Tensor(f"{block}.self_attn.v_proj.weight", dtype, (kv_heads * width, hidden)),
            Tensor(f"{block}.self_attn.o_proj.weight", dtype, (hidden, heads * width)),
            Tensor(f"{block}.mlp.gate_proj.weight", dtype, (intermediate, hidden)),
            Tensor(f"{block}.mlp.up_proj.weight", dtype, (intermediate, hidden)),
            Tensor(f"{block}.mlp.down_proj.weight", dtype, (hidden, intermediate)),
            Tensor(f"{block}.input_layernorm.weight", dtype, (hidden,)),
            Tensor(f"{block}.post_attention_layernorm.weight", dtype, (hidden,)),
        ]
    tensors.append(Tensor("model.norm.weight", dtype, (hidden,)))
    if not tied:
        tensors.append(Tensor("lm_head.weight", dtype, (vocabulary, hidden)))
    return ModelInfo(
        source=source,
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": context,
            "tie_word_embeddings": tied,
            **config,
        },
        tensors=tuple(tensors),
        has_chat_template=True,
    )


# https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct/blob/main/config.json
LLAMA3_8B = decoder_info(
    source="meta-llama/Meta-Llama-3-8B-Instruct",
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    vocabulary=128256,
    context=8192,
)
LLAMA3_70B = decoder_info(
    source="meta-llama/Meta-Llama-3-70B-Instruct",
    layers=80,
    hidden=8192,
    intermediate=28672,
    heads=64,
    kv_heads=8,
    vocabulary=128256,
    context=8192,
)
