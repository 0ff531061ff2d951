"""Packed passes through llmctl's attention, by the kernel and by torch, against transformers' own eager attention."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from llmctl.cpu import kernels
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.loading.attention import use_attention
from llmctl.loading.attention_mask import UnsupportedAttentionError

PROMPTS = [[3, 5, 7, 11, 13, 17, 19, 23, 29] * 3, [2, 4, 6], [9]]
GEMMA2 = transformers.Gemma2Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=300,
    sliding_window=8,
    attn_logit_softcapping=2.0,
    query_pre_attn_scalar=16,
)


GPT_OSS = transformers.GptOssConfig(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=300,
    sliding_window=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    layer_types=["sliding_attention", "full_attention"],
)
MADE = {
    "gemma2": (transformers.Gemma2ForCausalLM, GEMMA2),
    "gpt_oss": (transformers.GptOssForCausalLM, GPT_OSS),
}


@pytest.fixture(params=["llama", "gemma3", "gemma2", "gpt_oss"])
def model(request: pytest.FixtureRequest, tiny_models: Callable[[str], Path]) -> torch.nn.Module:
    """Return a model in float32: without a window, with one, with one and a soft cap, with one and sinks."""
    if request.param in MADE:
        torch.manual_seed(0)
        model_class, config = MADE[request.param]
        made = model_class._from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(0, 0.3)
        return made.eval()
    loaded: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_models(request.param), dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@pytest.mark.parametrize("by", ["kernel", "torch"])
def test_packed_sequences_have_the_same_logits_as_each_one_alone(
    model: torch.nn.Module, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "torch":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif kernels.load() is None:
        pytest.skip(str(kernels.missing()))
    pool = CachePool(6, 16)
    pages = [[2 * number, 2 * number + 1] for number in range(len(PROMPTS))]
    forward(model, lay_out([Segment(PROMPTS[0][:10], 0, pages[0])], page_tokens=16), pool)
    rest = [Segment(PROMPTS[0][10:], 10, pages[0]), Segment(PROMPTS[1], 0, pages[1]), Segment(PROMPTS[2], 0, pages[2])]
    packed = forward(model, lay_out(rest, page_tokens=16), pool)
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in PROMPTS]
    assert torch.allclose(packed, torch.stack(alone), rtol=1e-3, atol=1e-3 * float(packed.abs().max()))


def test_attention_that_is_not_causal_is_refused(model: torch.nn.Module) -> None:
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UnsupportedAttentionError):
        forward(model, lay_out([Segment([5], 0, [0])], page_tokens=16), CachePool(1, 16))


def test_a_model_with_sinks_gets_the_same_logits_from_the_kernel_and_from_padded_batches() -> None:
    if kernels.load() is None:
        pytest.skip(str(kernels.missing()))
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM._from_config(GPT_OSS, attn_implementation="eager").eval()
    ids = torch.randint(1, 300, (2, 20))
    padding = torch.ones_like(ids)
    padding[0, :6] = 0
    with torch.inference_mode():
        expected = [model(input_ids=ids).logits, model(input_ids=ids, attention_mask=padding).logits[:, 6:]]
        use_attention(model, is_requested=True)
        assert model.config._attn_implementation == "eager"
        use_attention(model)
        assert model.config._attn_implementation == "llmctl_cpu"
        result = [model(input_ids=ids).logits, model(input_ids=ids, attention_mask=padding).logits[:, 6:]]
    for one, other in zip(result, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
