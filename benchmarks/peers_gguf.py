"""Convert a Llama's safetensors to GGUF for llama.cpp: the same weights as F16, Q8_0 or Q4_0.

The file has no vocabulary, because the benchmark uses token ids. The matrices of the blocks have the requested type.
With Q4_0, the embedding (also the output head, if they are tied) is Q8_0; llama.cpp's own converter uses Q6_K for it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

TYPES = ("F16", "Q8_0", "Q4_0")
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, file: Path, weight_type: str) -> None:
    """Convert the model in `folder` to `file`. `weight_type` is one of `TYPES`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise SystemExit(f"{folder}: only a plain Llama can be converted")
    writer = gguf.GGUFWriter(file, "llama")
    heads, head_dim = config["num_attention_heads"], config.get("head_dim")
    head_dim = head_dim or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in _tensors(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = _name(name)
        if target.endswith(("attn_q.weight", "attn_k.weight")):
            tensor = _permuted(tensor, heads if "attn_q" in target else config["num_key_value_heads"])
        data, stored_type = _encode(tensor, target, weight_type)
        writer.add_tensor(target, data, raw_dtype=stored_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield each tensor's name and its values in float32."""
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(str(shard), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                yield name, opened.get_tensor(name).float().numpy()


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{_BLOCK[part]}.weight"


def _permuted(tensor: Any, heads: int) -> Any:
    """Reorder the rows of a query or key projection for llama.cpp's RoPE.

    transformers rotates element i with element i + half. For the architecture `llama`, llama.cpp rotates 2i with 2i + 1
    (LlamaModel.permute in its convert_hf_to_gguf.py).
    """
    rows, columns = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _encode(tensor: Any, target: str, weight_type: str) -> tuple[Any, Any]:
    """Return the data of a tensor, and its GGUF type if NumPy's does not give it."""
    if tensor.ndim == 1:
        return tensor.astype(np.float32), None
    if weight_type == "F16":
        return tensor.astype(np.float16), None
    is_embedding_or_head = target in ("token_embd.weight", "output.weight")
    stored_type = gguf.GGMLQuantizationType["Q8_0" if is_embedding_or_head else weight_type]
    return gguf.quants.quantize(np.ascontiguousarray(tensor), stored_type), stored_type
