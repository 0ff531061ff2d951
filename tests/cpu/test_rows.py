"""The operations between matrix products, compared with results in float64."""

import itertools
from typing import Any

import pytest
import torch
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from llmctl.cpu.experts import ExpertActivation, Experts, Routing
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


def test_each_gate_may_be_for_a_part_of_the_row(kernels: Kernels) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(3, 5), torch.randn(3, 300)
    expected = (gate.sigmoid()[..., None] * up.view(3, 5, 60)).view(3, 300)
    assert torch.allclose(kernels.gated_activation(gate, up, "sigmoid"), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [1, 15, 256, 300])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu_squared", "xielu"])
def test_an_activation_needs_no_gate(kernels: Kernels, activation: Any, dtype: str, width: int) -> None:
    torch.manual_seed(width)
    x = (3 * torch.randn(3, width)).to(getattr(torch, dtype))
    wide = x.double()
    numbers = {"alpha": 0.75, "negative_alpha": 1.25, "slope": 0.5} if activation == "xielu" else None
    if activation == "xielu":
        expected = 0.5 * wide + torch.where(wide > 0, 0.75 * wide.square(), 1.25 * (wide.clamp(max=0).expm1() - wide))
    elif activation == "relu_squared":
        expected = wide.relu().square()
    else:
        expected = torch.nn.functional.gelu(wide, approximate="tanh" if activation == "gelu_tanh" else "none")
    result = kernels.activation(x, activation, numbers)
    assert result.dtype == x.dtype
    assert torch.allclose(result.double(), expected, rtol=2 * DTYPES[dtype], atol=DTYPES[dtype])
    assert torch.equal(kernels.activation(x[2:], activation, numbers)[0], result[2])


@pytest.mark.parametrize("width", [1, 15, 256, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_norm_subtracts_the_mean_and_adds_a_bias(kernels: Kernels, dtype: str, width: int) -> None:
    torch.manual_seed(width)
    x, weight, bias = (torch.randn(shape).to(getattr(torch, dtype)) + 1 for shape in ((5, width), (width,), (width,)))
    result = kernels.rms_norm(x, weight, 1e-5, "layer_norm", bias)
    expected = torch.nn.functional.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
    assert torch.allclose(result.double(), expected, rtol=2 * DTYPES[dtype], atol=4 * DTYPES[dtype])


def routed(scores: torch.Tensor, weights: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    experts = scores.topk(top_k).indices
    return experts, weights.gather(1, experts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "top_k"), [(4, 2), (8, 8), (60, 4), (128, 8)])
@pytest.mark.parametrize("scoring", ["softmax", "top_softmax", "sigmoid", "top_sigmoid"])
def test_a_token_takes_its_top_experts(kernels: Kernels, scoring: Any, count: int, top_k: int, dtype: str) -> None:
    torch.manual_seed(count)
    logits = torch.stack([torch.randperm(count) for _ in range(6)]).div(7).sub(2).to(getattr(torch, dtype))
    logits = logits + torch.zeros_like(logits)
    wide = logits.double()
    scores = wide.sigmoid() if scoring in ("sigmoid", "top_sigmoid") else wide.softmax(-1)
    for normalize in (False, True):
        routing = Routing(count, top_k, scoring=scoring, normalize=normalize)
        experts, weights = kernels.route(logits, routing)
        expected = scores.gather(1, experts.long())
        assert torch.allclose(expected, scores.topk(top_k).values)
        if normalize or scoring == "top_softmax":
            expected = expected / expected.sum(-1, keepdim=True)
        assert torch.allclose(weights.double(), expected, rtol=1e-5)


def test_a_correction_decides_about_the_choice_but_not_about_the_weights(kernels: Kernels) -> None:
    torch.manual_seed(1)
    logits, correction = torch.randn(20, 12), torch.randn(12).bfloat16()
    for scoring, scores in (("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(-1))):
        routing = Routing(12, 3, scoring=scoring, correction=correction, multiplier=2.5)  # type: ignore[arg-type]
        experts, weights = kernels.route(logits, routing)
        expected_experts, expected = routed(scores + correction.float(), scores, 3)
        assert torch.equal(experts.long(), expected_experts)
        assert torch.allclose(weights, 2.5 * expected)


def test_an_expert_may_have_a_factor(kernels: Kernels) -> None:
    torch.manual_seed(1)
    logits, factors = torch.randn(20, 12), torch.randn(12).bfloat16()
    experts, weights = kernels.route(logits, Routing(12, 3, normalize=True, factors=factors))
    expected = logits.softmax(-1).gather(1, experts.long())
    assert torch.allclose(weights, expected / expected.sum(-1, keepdim=True) * factors[experts.long()].float())


@pytest.mark.parametrize("group_best", [1, 2])
def test_only_experts_of_the_best_groups_are_chosen(kernels: Kernels, group_best: int) -> None:
    torch.manual_seed(2)
    logits = torch.randn(50, 16)
    routing = Routing(16, 4, scoring="sigmoid", groups=4, top_groups=2, group_best=group_best)
    groups = logits.sigmoid().view(50, 4, 4)
    best = groups.topk(group_best).values.sum(-1).topk(2).indices
    allowed = torch.zeros(50, 4).scatter(1, best, 1.0).bool()[..., None].expand(50, 4, 4).reshape(50, 16)
    expected, _ = routed(logits.sigmoid().masked_fill(~allowed, -torch.inf), logits, 4)
    assert torch.equal(kernels.route(logits, routing)[0].long(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_phi_moe_chooses_the_second_expert_without_the_first(kernels: Kernels, dtype: str) -> None:
    torch.manual_seed(3)
    logits = (2 * torch.randn(200, 16)).to(getattr(torch, dtype))
    expected_weights, expected = sparsemixer(logits, 0.1, training=False)
    epsilon = float(torch.tensor(0.2, dtype=logits.dtype))
    experts, weights = kernels.route(logits, Routing(16, 2, scoring="sparse_mixer", epsilon=epsilon))
    assert torch.equal(experts.long(), expected)
    assert torch.allclose(weights, expected_weights.float(), rtol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [0, 4, 8])
def test_a_token_gets_the_same_sum_of_its_experts_alone_and_in_a_batch(kernels: Kernels, bits: int, dtype: str) -> None:
    """Experts with biases, and gate and up alternating, as in gpt-oss; sizes that fill no block."""
    torch.manual_seed(4)
    hidden, inner, count = 40, 24, 5
    plain = [torch.randn(count, n, k).div(6) for n, k in ((2 * inner, hidden), (hidden, inner))]
    weights = [weight.to(getattr(torch, dtype)) for weight in plain]
    if bits:
        parts = [[getattr(kernels, f"quantize_q{bits}")(one) for one in weight] for weight in plain]
        weights = [
            torch.stack([torch.cat([p.view(torch.uint8).flatten() for p in pair]) for pair in some]) for some in parts
        ]
        plain = [
            torch.stack([getattr(kernels, f"dequantize_q{bits}")(*pair, *like.shape[1:]) for pair in some])
            for some, like in zip(parts, plain, strict=True)
        ]
    biases = [torch.randn(count, n).to(getattr(torch, dtype)) for n in (2 * inner, hidden)]
    activation = ExpertActivation("clamped_swiglu", True, 1.702, 0.9)
    experts = Experts(*weights, hidden, inner, activation, bits, *biases)  # type: ignore[misc]
    x = torch.randn(9, hidden).to(getattr(torch, dtype))
    chosen, shares = torch.rand(9, count).argsort(-1)[:, :3], torch.rand(9, 3)
    chosen[4, 1] = count  # transformers marks a token without an expert like this
    together = kernels.experts(x, experts, chosen, shares)
    for row in range(9):
        assert torch.equal(
            kernels.experts(x[row : row + 1], experts, chosen[row : row + 1], shares[row : row + 1])[0], together[row]
        )
    expected = torch.zeros(9, hidden, dtype=torch.double)
    wide = [tensor.double() for tensor in (*plain, *biases)]
    for row, place in itertools.product(range(9), range(3)):
        if (expert := int(chosen[row, place])) < count:
            gate_up = wide[0][expert] @ x[row].double() + wide[2][expert]
            gate, up = gate_up[::2].clamp(max=0.9), gate_up[1::2].clamp(-0.9, 0.9)
            result = wide[1][expert] @ ((up + 1) * gate * (1.702 * gate).sigmoid()) + wide[3][expert]
            expected[row] += result * float(shares[row, place])
    error = (together.double() - expected).norm() / expected.norm()
    assert error < (0.02 if bits else 3 * DTYPES[dtype])  # quantised kernels round x to 8 bits


def test_weights_may_multiply_the_inputs_of_experts_without_a_gate(kernels: Kernels) -> None:
    torch.manual_seed(5)
    up, down, x = torch.randn(4, 24, 40), torch.randn(4, 40, 24), torch.randn(6, 40)
    chosen, shares = torch.rand(6, 4).argsort(-1)[:, :2], torch.rand(6, 2)
    expected = {True: torch.zeros(6, 40), False: torch.zeros(6, 40)}
    for row, place in itertools.product(range(6), range(2)):
        expert, share = int(chosen[row, place]), float(shares[row, place])
        expected[True][row] += down[expert] @ (up[expert] @ (x[row] * share)).relu().square()
        expected[False][row] += share * (down[expert] @ (up[expert] @ x[row]).relu().square())
    for weighs_inputs, sums in expected.items():
        activation = ExpertActivation("relu_squared", is_gated=False)
        experts = Experts(up, down, 40, 24, activation, weighs_inputs=weighs_inputs)
        assert torch.allclose(kernels.experts(x, experts, chosen, shares), sums, rtol=1e-4, atol=1e-3)


def test_mismatched_tensors_are_refused(best: Kernels) -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="weight must be"):
        best.rms_norm(x, torch.randn(7), 1e-5, "norm_then_weight")
    with pytest.raises(ValueError, match="must have weights"):
        best.rms_norm(x, None, 1e-5, "norm_then_weight")
    with pytest.raises(ValueError, match="do not match"):
        best.gated_activation(x, torch.randn(2, 7), "silu")
