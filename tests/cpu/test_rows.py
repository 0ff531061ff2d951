"""The operations between matrix products, compared with results in float64."""

import pytest
import torch

from llmctl.cpu.kernels import Kernels
from llmctl.cpu.structs import NORM_FLAVOURS

DTYPES = {"float32": 1e-6, "bfloat16": 8e-3, "float16": 1e-3}


@pytest.mark.parametrize("width", [1, 7, 16, 64, 100, 2048])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flavour", NORM_FLAVOURS)
def test_a_norm_divides_by_the_root_of_the_mean_square(kernels: Kernels, flavour: str, dtype: str, width: int) -> None:
    torch.manual_seed(width)
    x, weight = torch.randn(5, width).to(getattr(torch, dtype)), torch.randn(width).to(getattr(torch, dtype))
    given = None if flavour == "no_weight" else weight
    result = kernels.rms_norm(x, given, 1e-5, flavour)
    centred = x.double() - (x.double().mean(-1, keepdim=True) if flavour == "layer_norm" else 0)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = normed if given is None else normed * (given.double() + (flavour == "one_plus_weight"))
    assert result.dtype == x.dtype
    assert torch.allclose(result.double(), expected, rtol=2 * DTYPES[dtype], atol=DTYPES[dtype])
    assert torch.equal(kernels.rms_norm(x[3:4], given, 1e-5, flavour)[0], result[3])


@pytest.mark.parametrize("width", [1, 15, 256, 300, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_is_activated_and_multiplied_by_up(kernels: Kernels, activation: str, dtype: str, width: int) -> None:
    torch.manual_seed(width)
    gate, up = (8 * torch.randn(3, width)).to(getattr(torch, dtype)), torch.randn(3, width).to(getattr(torch, dtype))
    result = kernels.gated_activation(gate, up, activation)
    wide = gate.double()
    by = torch.nn.functional.silu(wide) if activation == "silu" else torch.nn.functional.gelu(wide, approximate="tanh")
    assert result.dtype == gate.dtype
    assert torch.allclose(result.double(), by * up.double(), rtol=2 * DTYPES[dtype], atol=8 * DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "top_k"), [(4, 2), (8, 8), (60, 4), (128, 8)])
def test_a_token_takes_its_top_experts(kernels: Kernels, count: int, top_k: int, dtype: str) -> None:
    torch.manual_seed(count)
    logits = torch.stack([torch.randperm(count) for _ in range(6)]).div(7).to(getattr(torch, dtype))
    probabilities = torch.softmax(logits.double(), -1)
    for normalize in (False, True):
        experts, weights = kernels.route(logits, top_k, normalize=normalize, round_weights=False)
        expected = probabilities.gather(1, experts.long())
        assert torch.equal(expected, probabilities.topk(top_k).values)
        if normalize:
            expected = expected / expected.sum(-1, keepdim=True)
        assert torch.allclose(weights.double(), expected, rtol=1e-5)


def test_mismatched_tensors_are_refused(best: Kernels) -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="weight must be"):
        best.rms_norm(x, torch.randn(7), 1e-5, "norm_then_weight")
    with pytest.raises(ValueError, match="must have weights"):
        best.rms_norm(x, None, 1e-5, "norm_then_weight")
    with pytest.raises(ValueError, match="do not match"):
        best.gated_activation(x, torch.randn(2, 7), "silu")
