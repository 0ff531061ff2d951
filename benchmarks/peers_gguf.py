"""A Llama's safetensors as GGUF, for llama.cpp: the same weights, F16, Q8_0 or Q4_0.

No vocabulary goes in: the benchmark speaks in token ids. Matrices of the blocks are in the type that is asked for; with
Q4_0 the embedding, which is the head as well where they are tied, is Q8_0 (llama.cpp's own tool takes Q6_K there).
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
_AROUND = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, file: Path, kind: str) -> None:
    """Write `file` from the model in `folder`. `kind` is one of `TYPES`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise SystemExit(f"{folder}: only a plain Llama is converted here")
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
        data, stored = _stored(tensor, target, kind)
        writer.add_tensor(target, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor in float32."""
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(str(shard), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield name, opened.get_tensor(name).float().numpy()


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _AROUND:
        return f"{_AROUND[stem]}.weight"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{_BLOCK[part]}.weight"


def _permuted(tensor: Any, heads: int) -> Any:
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding, which turns neighbours.

    transformers turns element i with i + half; llama.cpp, for the architecture `llama`, 2i with 2i + 1
    (its convert_hf_to_gguf.py, LlamaModel.permute).
    """
    rows, columns = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _stored(tensor: Any, target: str, kind: str) -> tuple[Any, Any]:
    if tensor.ndim == 1:
        return tensor.astype(np.float32), None
    if kind == "F16":
        return tensor.astype(np.float16), None
    around = target in ("token_embd.weight", "output.weight")
    wanted = gguf.GGMLQuantizationType["Q8_0" if around else kind]
    return gguf.quants.quantize(np.ascontiguousarray(tensor), wanted), wanted
