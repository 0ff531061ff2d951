"""Weights for torch's packed kernels, which replace llmctl's own if they were not compiled."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.errors import MachineError, ModelError
from llmctl.loading.export import quantize
from llmctl.loading.model import LoadedModel
from llmctl.loading.prepare import prepare
from support import forkserver

Tiny = Callable[[str], Path]
Copy = Callable[..., Path]
LIMITS = {"max_new_tokens": 10}


def load(folder: Path, bits: int) -> LoadedModel:
    return llmctl.load(folder, quantization={"bits": bits, "backend": "torch"}, generation=LIMITS)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_architecture_loads_and_generates(architecture: str, bits: int, tiny_models: Tiny) -> None:
    loaded = load(tiny_models(architecture), bits)
    assert loaded.measured.quantization == f"torch {bits}-bit, output head 8-bit"
    assert loaded.measured.device_bytes["cpu"] == pytest.approx(loaded.plan.memory.weights["cpu"], rel=0.02)
    assert loaded.measured.parameters == llmctl.load(tiny_models(architecture)).measured.parameters
    assert llmctl.generate(loaded, "the capital").token_ids


@pytest.mark.parametrize(("bits", "most"), [(4, 0.12), (8, 0.01)])
@pytest.mark.parametrize("shape", [(64, 64), (80, 32), (7, 33), (200, 96), (1, 5)])
def test_products_are_correct_for_odd_shapes(bits: int, most: float, shape: tuple[int, int]) -> None:
    import torch

    from llmctl.cpu.layers import ROWS_TOGETHER
    from llmctl.quant.torch_packed_weight import TorchPacked

    torch.manual_seed(0)
    n, k = shape
    weight, x, bias = torch.randn(n, k) * 0.02, torch.randn(3, 2, k), torch.randn(n)
    packed = TorchPacked(bits, n, k)
    whole = torch.empty(packed.size_bytes, dtype=torch.uint8)
    for start in range(0, n, ROWS_TOGETHER):
        packed.pack_rows(whole, start, weight[start : start + ROWS_TOGETHER])
    y = packed.multiply(x, packed.views(whole), bias)
    wanted = x.double() @ weight.double().T
    assert y.shape == (3, 2, n)
    assert y.dtype == torch.float32
    assert (y - bias - wanted).norm() <= most * wanted.norm()
    if bits == 8:
        ids = torch.tensor([n - 1, 0])
        assert torch.allclose(packed.rows(whole, ids), weight[ids], atol=most * weight.abs().max().item())


def test_equal_weights_of_a_block_and_rows_of_zeros_are_kept() -> None:
    import torch

    from llmctl.quant.torch_packed_weight import TorchPacked

    for bits in (4, 8):
        packed = TorchPacked(bits, 16, 32)
        whole = torch.empty(packed.size_bytes, dtype=torch.uint8)
        weight = torch.cat([torch.zeros(8, 32), torch.full((8, 32), 0.5)])
        packed.pack_rows(whole, 0, weight)
        y = packed.multiply(torch.ones(1, 32), packed.views(whole))
        assert torch.allclose(y, torch.tensor([[0.0] * 8 + [16.0] * 8]), rtol=0.01)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_detected(bits: int, wrong: float, tiny_copy: Copy) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_copy()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = wrong
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight contains"):
        load(folder, bits)


def test_weights_packed_for_one_processor_are_neither_cached_nor_exported(tiny_models: Tiny, tmp_path: Path) -> None:
    asked = {"model": {"id": str(tiny_models("llama"))}, "quantization": {"bits": 4, "backend": "torch"}}
    prepared = prepare(settings_from_mapping(asked))
    assert "quantized_copy=none: torch's kernels pack weights for the processor" in " ".join(
        map(str, prepared.plan.decisions)
    )
    with pytest.raises(MachineError, match="cannot be written") as refused:
        quantize(prepared, tmp_path / "out")
    assert "quantization.backend=bitsandbytes" in str(refused.value.hint)
    assert not (tmp_path / "out").exists()


WITHOUT = """
import json, sys, llmctl
loaded = llmctl.load(sys.argv[1], quantization={"bits": 4}, generation={"max_new_tokens": 4})
print(json.dumps([loaded.measured.quantization, llmctl.generate(loaded, "the capital").token_ids]))
"""


def test_an_installation_without_compiled_kernels_uses_it(tiny_models: Tiny, tmp_path: Path) -> None:
    environment = os.environ | {"LLMCTL_KERNELS_LIBRARY": str(tmp_path / "none.so")}
    done = forkserver.run(str(tiny_models("llama")), program=("-c", WITHOUT), env=environment)
    assert done.returncode == 0, done.stderr
    quantization, ids = json.loads(done.stdout)
    assert quantization == "torch 4-bit, output head 8-bit"
    assert len(ids) == 4
