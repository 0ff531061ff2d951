"""Bytes against figures computed by hand."""

from dataclasses import replace

import pytest

from llmctl.model.checkpoint import Tensor
from llmctl.plan.cache_memory import kv_cache_bytes
from llmctl.plan.memory import module_bytes, tensor_bytes
from llmctl.quant.backend import Quantization
from llmctl.quant.bitsandbytes import BACKEND as BITSANDBYTES
from llmctl.units import parse_bytes
from support.machines import LLAMA3_8B, LLAMA3_70B, decoder_info

# Llama 3 8B: 32 blocks of 4096*4096*2 (q, o) + 4096*1024*2 (k, v) + 4096*14336*3 (mlp) + 2*4096 (norms)
BLOCK = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 4096 * 14336 * 3 + 2 * 4096
EMBEDDING = 128256 * 4096
LLAMA3_8B_PARAMETERS = 8_030_261_248  # as the Hub counts it


def test_the_parameters_of_llama_3_are_those_the_hub_counts() -> None:
    assert LLAMA3_8B.parameters == LLAMA3_8B_PARAMETERS == 32 * BLOCK + 2 * EMBEDDING + 4096
    assert LLAMA3_70B.parameters == 70_553_706_496


def test_weights_by_module_add_up_and_are_in_forward_order() -> None:
    sizes = module_bytes(LLAMA3_8B, dtype="bfloat16")
    assert sum(sizes.values()) == 2 * LLAMA3_8B_PARAMETERS
    assert next(iter(sizes)) == "model.embed_tokens"
    assert list(sizes)[1:4] == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert list(sizes)[-2:] == ["model.norm", "lm_head"]
    assert sizes["model.layers.7"] == 2 * BLOCK
    assert sum(module_bytes(LLAMA3_8B, dtype="float32").values()) == 4 * LLAMA3_8B_PARAMETERS


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (BITSANDBYTES.scheme(4), 4 + 32 / 64),
        (replace(BITSANDBYTES.scheme(4), arguments={"bnb_4bit_use_double_quant": True}), 4 + 8 / 64 + 32 / 64 / 256),
        (BITSANDBYTES.scheme(8), 8),
    ],
)
def test_only_the_matrices_of_the_blocks_are_quantised(quantization: Quantization, bits: float) -> None:
    sizes = module_bytes(LLAMA3_8B, dtype="bfloat16", quantization=quantization)
    assert sizes["model.embed_tokens"] == sizes["lm_head"] == 2 * EMBEDDING
    matrices = BLOCK - 2 * 4096
    assert sizes["model.layers.0"] == pytest.approx(matrices * bits / 8 + 2 * 2 * 4096, rel=0.001)


def test_a_skipped_module_stays_as_it_is() -> None:
    tensor = Tensor("model.layers.0.mlp.down_proj.weight", "BF16", (64, 64))
    assert tensor_bytes(tensor, dtype="bfloat16", quantization=BITSANDBYTES.scheme(4)) == 64 * 64 // 2 + 4 * 64
    skipped = replace(BITSANDBYTES.scheme(4), arguments={"llm_int8_skip_modules": ["down_proj"]})
    assert tensor_bytes(tensor, dtype="bfloat16", quantization=skipped) == 64 * 64 * 2


def test_a_tied_head_takes_no_memory() -> None:
    numbers = {"layers": 1, "hidden": 64, "intermediate": 64, "heads": 4, "kv_heads": 4, "vocabulary": 10, "context": 9}
    tied = decoder_info(source="a/b", tied=True, **numbers)
    assert module_bytes(tied, dtype="float32")["lm_head"] == 0


def test_the_kv_cache_of_llama_3_at_8k() -> None:
    # 2 (keys, values) * 8192 tokens * 32 layers * 8 heads * 128 * 2 bytes = 1 GiB
    assert kv_cache_bytes(LLAMA3_8B, context=8192, dtype="bfloat16") == 2**30
    assert kv_cache_bytes(LLAMA3_8B, context=8192, batch=4, dtype="float32") == 8 * 2**30


def test_sliding_layers_keep_at_most_their_window() -> None:
    info = decoder_info(
        source="a/b",
        layers=2,
        hidden=64,
        intermediate=64,
        heads=4,
        kv_heads=2,
        vocabulary=10,
        context=4096,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"],
    )
    assert kv_cache_bytes(info, context=1000, dtype="bfloat16") == 2 * (127 + 1000) * 2 * 16 * 2


@pytest.mark.parametrize(("text", "size"), [("20GiB", 20 * 2**30), ("1.5GB", 1_500_000_000), ("7", 7), (8, 8)])
def test_sizes_with_units_are_parsed(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


def test_an_invalid_size_is_refused() -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes("plenty")
