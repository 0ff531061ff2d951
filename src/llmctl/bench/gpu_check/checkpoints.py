"""Checkpoints with random weights, and their tokenizers: the models of a check, written where none can be fetched."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.bench.gpu_check.workplace import Workplace
from llmctl.model.checkpoint import INDEX_FILE
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

# The shapes of Llama 3 8B and Llama 3.2 1B, with their vocabulary.
_LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_1B = {**_LLAMA_8B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
_LARGE_VOCABULARY, _LARGE_CONTEXT = 128_256, 65_536
_TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
# For the shape of 8B, of 16 GB: keys and values beside the weights; copies in 8 and 4 bits beside the checkpoint.
_NEEDED_GPU_BYTES, _NEEDED_DISK_BYTES = 20 << 30, 34 << 30
# Models to compare with references: what is special in each.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gemma2": ("gemma2", {  # windows, softcap, norms around each part
        "sliding_window": 16, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 64, "tie_word_embeddings": False,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }),
    "gpt_oss": ("gpt_oss", {  # sinks, windows, experts: all, since rounding would change a choice
        "num_local_experts": 4, "num_experts_per_tok": 4, "sliding_window": 16, "tie_word_embeddings": False,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }),
}  # fmt: skip
SMALL_SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
_SMALLEST_SHAPE = {**SMALL_SHAPE, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
_SMALL_VOCABULARY = 2048
# Standard deviations of weights, times the square root of the hidden size. With more in the layers, each of them would
# multiply the rounding of half precision; with less around them, the answers to different prompts would not differ.
# Larger weights of queries and keys make the scores of the attention uneven, so that a wrong softcap shows.
_SPREAD_IN_LAYERS, _SPREAD_OF_SCORES, _SPREAD = 1.0, 1.7, 2.4
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_checkpoints(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Write the models of all later steps."""
    shape = _SMALLEST_SHAPE if workplace.tiny else SMALL_SHAPE
    for name, (model_type, special) in SMALL.items():
        write_small(workplace.folder / name, model_type, {**shape, **special})
    yield {"small": list(SMALL)}
    large, title = _large_shape(workplace)
    size = write_large(workplace.folder / "large", large, device=str(workplace.device))
    yield {"large": {"shape": title, "bytes": size}}
    workplace.headline = f"{len(SMALL)} small models, and the shape of {title}: {format_bytes(size)}"


def _large_shape(workplace: Workplace) -> tuple[dict[str, Any], str]:
    """Return the largest shape that fits on the card and on the disk, and its name."""
    import torch

    if workplace.tiny:
        return {**_TINY_LLAMA, "vocab_size": 512, "max_position_embeddings": 512}, "a tiny Llama"
    bounds = {"vocab_size": _LARGE_VOCABULARY, "max_position_embeddings": _LARGE_CONTEXT}
    free, _ = torch.cuda.mem_get_info(workplace.device)
    if free >= _NEEDED_GPU_BYTES and shutil.disk_usage(workplace.folder).free >= _NEEDED_DISK_BYTES:
        return {**_LLAMA_8B, **bounds}, "Llama 3 8B"
    return {**_LLAMA_1B, **bounds}, "Llama 3.2 1B"


def write_small(folder: Path, model_type: str, shape: Mapping[str, Any]) -> None:
    """Write a model whose weights are large enough that the answers to different prompts differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tokenizer(folder, size=_SMALL_VOCABULARY)
    config = AutoConfig.for_model(model_type, vocab_size=_SMALL_VOCABULARY, **_token_ids(), **shape)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                spread = _spread(name, has_softcap="attn_logit_softcapping" in shape)
                parameter.normal_(0, spread / shape["hidden_size"] ** 0.5)
    model.to(torch.bfloat16).save_pretrained(str(folder))


def _spread(name: str, *, has_softcap: bool) -> float:
    if has_softcap and (".q_proj." in name or ".k_proj." in name):
        return _SPREAD_OF_SCORES
    return _SPREAD_IN_LAYERS if ".layers." in name else _SPREAD


def write_large(folder: Path, shape: Mapping[str, Any], *, device: str) -> int:
    """Write a Llama, one file for each layer. Return the bytes of its weights.

    All layers have the same random weights, which are drawn once: for speed and memory that makes no difference.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    write_tokenizer(folder, size=shape["vocab_size"])
    config = LlamaConfig(**shape, **_token_ids(), dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(str(folder))
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    drawn: dict[str, Tensor] = {}
    files: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        _, is_layer, rest = name.partition("layers.")
        number, _, part = rest.partition(".")
        kind = part if is_layer else name
        if kind not in drawn:
            drawn[kind] = _random(tuple(weight.shape), device=device)
        files.setdefault(f"model-{number if is_layer else 'rest'}.safetensors", {})[name] = drawn[kind]
    size = 0
    for file, tensors in files.items():
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        size += sum(tensor.nbytes for tensor in tensors.values())
    places = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    return size


def _random(shape: tuple[int, ...], *, device: str) -> "Tensor":
    """Return random weights in RAM: ones for a norm, small ones for a product."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16).mul_(0.02).cpu()


def _token_ids() -> dict[str, int]:
    return {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def write_tokenizer(folder: Path, *, size: int) -> None:
    """Write a byte-level tokenizer with `size` tokens: one for each byte, and others that no text contains."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = [*letters, *(f"Ġw{number}" for number in range(size - len(letters)))]
    inner = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(_SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=_SPECIAL[0], eos_token=_SPECIAL[0])
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(str(folder))
