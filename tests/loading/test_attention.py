"""Packed passes through llmctl's attention, by the kernel and by torch, against transformers' own eager attention."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from llmctl.cpu import kernels
from llmctl.generation.engine.forward import KVCachePool, Segment, forward, lay_out
from llmctl.loading.attention import UnsupportedAttentionError

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


@pytest.fixture(params=["llama", "gemma3", "gemma2"])
def model(request: pytest.FixtureRequest, tiny_models: Callable[[str], Path]) -> torch.nn.Module:
    """Return a model in float32: without a window, with one, and with one and a soft cap."""
    if request.param == "gemma2":
        torch.manual_seed(0)
        made = transformers.Gemma2ForCausalLM._from_config(GEMMA2, attn_implementation="eager")
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
    pool = KVCachePool(6, 16)
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
        forward(model, lay_out([Segment([5], 0, [0])], page_tokens=16), KVCachePool(1, 16))
