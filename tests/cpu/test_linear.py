"""Linear layers: correct up to rounding for every shape and type, and bitwise independent of the other rows."""

from itertools import product
from pathlib import Path

import pytest
import torch

from llmctl.cpu.kernels import Kernels

TYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 7), (16, 32), (33, 50), (20, 96), (64, 4100), (161, 64))
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17)
# relative error of results that are rounded to a type
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rounded_to_8_bits(x: torch.Tensor) -> torch.Tensor:
    """Round x as the quantised kernels do, to 8 bits in blocks of 32. Return float64."""
    k = x.shape[-1]
    blocks = torch.nn.functional.pad(x.float(), (0, -k % 32)).unflatten(-1, (-1, 32))
    peaks = blocks.abs().amax(-1, keepdim=True)
    codes = torch.round(blocks * torch.where(peaks > 0, 127.0 / peaks, 0.0))
    return (codes.double() * (peaks / 127.0)).flatten(-2)[..., :k]


def mxfp4_blocks(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random weight as MXFP4 checkpoints store it: blocks and exponents, of every kind."""
    random, count = torch.Generator().manual_seed(2), -(-k // 32)
    blocks = torch.randint(0, 256, (n, count, 16), dtype=torch.uint8, generator=random)
    return blocks, torch.randint(110, 140, (n, count), dtype=torch.uint8, generator=random)


def mxfp4_values(blocks: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Return the weight [n, k] by the definition of the format."""
    half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    table = torch.tensor([*half, *(-value for value in half)], dtype=torch.float64)
    values = torch.stack([table[(blocks & 15).int()], table[(blocks >> 4).int()]], -1).flatten(2)
    return torch.ldexp(values, exponents.int()[..., None] - 127).flatten(1)


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return ((y.double() - reference).norm() / reference.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_products_are_those_of_the_dequantised_weights(kernels: Kernels, bits: int) -> None:
    for (n, k), rows in product(SHAPES, ROWS):
        dtype = TYPES[rows % 3]
        qweight, scales = getattr(kernels, f"quantize_q{bits}")(numbers(n, k, seed=1))
        weights = getattr(kernels, f"dequantize_q{bits}")(qweight, scales, n, k).double()
        x, bias = numbers(rows, k, dtype=dtype), numbers(n, seed=2) if rows % 2 else None
        y = getattr(kernels, f"linear_q{bits}")(x, qweight, scales, n, k, bias)
        reference = rounded_to_8_bits(x) @ weights.T + (0 if bias is None else bias.double())
        assert y.dtype == dtype
        assert relative_error(y, reference) < ROUNDING[dtype], (n, k, rows, dtype)


def test_products_with_weights_as_torch_stores_them(kernels: Kernels) -> None:
    for (n, k), rows in product(SHAPES, ROWS):
        for x_dtype, w_dtype in product(TYPES, TYPES):
            x, weight = numbers(rows, k, dtype=x_dtype), numbers(n, k, dtype=w_dtype, seed=1)
            bias = numbers(n, dtype=w_dtype, seed=2) if rows % 2 else None
            y = kernels.linear(x, weight, bias, dtype=torch.float32)
            reference = x.double() @ weight.double().T + (0 if bias is None else bias.double())
            assert relative_error(y, reference) < 1e-5, (n, k, rows, x_dtype, w_dtype)
    assert kernels.linear(x, weight).dtype == x.dtype


@pytest.mark.parametrize("rows", [64, 257])
def test_many_rows_at_once(kernels: Kernels, rows: int) -> None:
    x, weight = numbers(2, rows, 320), numbers(70, 320, seed=1)
    qweight, scales = kernels.quantize_q4(weight)
    reference = rounded_to_8_bits(x) @ kernels.dequantize_q4(qweight, scales, 70, 320).double().T
    assert relative_error(kernels.linear_q4(x, qweight, scales, 70, 320), reference) < 2e-6
    for dtype in TYPES:
        y = kernels.linear(x.to(dtype), weight.to(dtype), dtype=torch.float32)
        assert relative_error(y, x.to(dtype).double() @ weight.to(dtype).double().T) < 1e-5


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["q4", "q8", "mxfp4", "linear"])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_with_any_number_of_threads(
    kernels: Kernels, kind: str, dtype: torch.dtype
) -> None:
    n, k = 77, 2500
    x, weight = numbers(150, k, dtype=dtype), numbers(n, k, dtype=dtype, seed=1)

    def product_of(rows: torch.Tensor) -> torch.Tensor:
        if kind == "linear":
            return kernels.linear(rows, weight)
        return getattr(kernels, f"linear_{kind}")(rows, *quantised, n, k)

    if kind == "mxfp4":
        quantised = kernels.pack_mxfp4(*mxfp4_blocks(n, k))
    else:
        quantised = getattr(kernels, f"quantize_{kind}")(weight) if kind != "linear" else ()
    threads = torch.get_num_threads()
    together = product_of(x)
    try:
        for height in (1, 2, 3, 5, 8, 11, 64):
            torch.set_num_threads(1 + height % 3)
            for first in (0, 7, 131):
                part = x[first : first + height]
                assert torch.equal(product_of(part), together[first : first + height]), (height, first)
    finally:
        torch.set_num_threads(threads)


def test_every_instruction_set_makes_the_same_codes_and_the_same_quantised_products(best: Kernels) -> None:
    weight, x = numbers(48, 640, dtype=torch.bfloat16, seed=1), numbers(9, 640)
    seen = []
    isa = best.isa
    try:
        for name in best.usable:
            best.use(name)
            codes4, codes8 = best.quantize_q4(weight), best.quantize_q8(weight)
            kept = best.linear_mxfp4(x, *best.pack_mxfp4(*mxfp4_blocks(48, 640)), 48, 640)
            made = best.linear_q4(x, *codes4, 48, 640), best.linear_q8(x, *codes8, 48, 640), kept
            seen.append([*codes4, *codes8, *made])
    finally:
        best.use(isa)
    for name, those in zip(best.usable, seen, strict=True):
        # the portable one has no fused multiply-add and rounds some sums differently
        exact = those[:4] if name == "portable" else those
        assert all(torch.equal(a, b) for a, b in zip(exact, seen[0], strict=False)), name
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in zip(those[4:], seen[0][4:], strict=True))


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 65])
def test_mxfp4_is_multiplied_exactly_as_it_is_stored(kernels: Kernels, rows: int) -> None:
    for n, k in ((1, 32), (50, 96), (16, 2880)):
        stored = mxfp4_blocks(n, k)
        stored[1][0, 0], stored[1][n - 1, -1] = 0, 1  # the smallest scales are no normal numbers of float32
        packed, weight = kernels.pack_mxfp4(*stored), mxfp4_values(*stored)
        assert torch.equal(kernels.dequantize_mxfp4(*packed, n, k).double(), weight)
        x, bias = numbers(rows, k), numbers(n, seed=1)
        y = kernels.linear_mxfp4(x, *packed, n, k, bias)
        assert relative_error(y, rounded_to_8_bits(x) @ weight.T + bias) < 2e-6
    with pytest.raises(ValueError, match="do not match"):
        kernels.pack_mxfp4(stored[0], stored[1][1:])
    with pytest.raises(ValueError, match="must be"):
        kernels.linear_q4(x, *packed, n, k)


def test_the_error_of_four_bits_is_that_of_the_best_code_for_normal_numbers(best: Kernels) -> None:
    weight = numbers(512, 1024)
    assert relative_error(best.dequantize_q4(*best.quantize_q4(weight), 512, 1024), weight.double()) < 0.0735
    assert relative_error(best.dequantize_q8(*best.quantize_q8(weight), 512, 1024), weight.double()) < 0.0056


def test_weights_of_any_size_survive(kernels: Kernels) -> None:
    weight = torch.zeros(16, 96)
    weight[1], weight[2], weight[3, 5] = 1e-6, -3e4, 0.25
    for bits in (4, 8):
        made = getattr(kernels, f"quantize_q{bits}")(weight)
        back = getattr(kernels, f"dequantize_q{bits}")(*made, 16, 96)
        assert torch.equal(back[0], weight[0])
        assert torch.allclose(back[2:], weight[2:], rtol=0.01, atol=0.005)
        assert back.isfinite().all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_affects_no_other_row(kernels: Kernels, wrong: float) -> None:
    x, weight = numbers(5, 64), numbers(20, 64, seed=1)
    quantised = kernels.quantize_q4(weight)
    clean = kernels.linear_q4(x, *quantised, 20, 64)
    x[2, 40] = wrong
    y = kernels.linear_q4(x, *quantised, 20, 64)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_zero_rows_give_zero_rows(best: Kernels) -> None:
    weight = numbers(20, 64)
    assert best.linear(numbers(0, 64), weight).shape == (0, 20)
    assert best.linear_q4(numbers(2, 0, 64), *best.quantize_q4(weight), 20, 64).shape == (2, 0, 20)


def test_mismatched_tensors_are_refused(best: Kernels) -> None:
    x, weight = numbers(3, 64), numbers(20, 64)
    qweight, scales = best.quantize_q4(weight)
    for refused in (
        lambda: best.linear(numbers(3, 63), weight),
        lambda: best.linear(x.double(), weight),
        lambda: best.linear(numbers(64, 3).T, weight),
        lambda: best.linear(x, weight, numbers(19)),
        lambda: best.linear(x, numbers(64)),
        lambda: best.linear_q4(x, qweight, scales, 40, 64),
        lambda: best.linear_q8(x, qweight, scales, 20, 64),
        lambda: best.linear_q4(x, qweight, scales.float(), 20, 64),
        lambda: best.linear_q4(x, qweight.mT, scales, 20, 64),
        lambda: best.quantize_q4(weight.to("meta")),
        lambda: best.use("abacus"),
    ):
        with pytest.raises(ValueError, match=r"has|must|are not|not one of"):
            refused()


@pytest.mark.smollm
def test_four_bits_are_closer_to_a_trained_model_than_nf4(best: Kernels, smollm: Path) -> None:
    """Compare the error of x @ w^T for weights of SmolLM2 with that of bitsandbytes' NF4, which also has 4.5 bits."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from safetensors import safe_open

    ours, theirs = [], []
    with safe_open(smollm / "model.safetensors", framework="pt") as file:
        for layer in (0, 15, 29):
            for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
                weight = file.get_tensor(f"model.layers.{layer}.{part}.weight")
                x = numbers(16, weight.shape[1])
                expected = x.double() @ weight.double().T
                n, k = weight.shape
                ours.append(relative_error(best.linear_q4(x, *best.quantize_q4(weight), n, k), expected))
                code, state = quantize_4bit(weight.float(), blocksize=64, quant_type="nf4")
                theirs.append(relative_error(x @ dequantize_4bit(code, state).T, expected))
    assert max(a / b for a, b in zip(ours, theirs, strict=True)) < 0.9, (ours, theirs)
