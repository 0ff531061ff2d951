"""Weights in llmctl's own format, in 4 and 8 bits: every architecture is loaded, run, saved and loaded again."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.cpu import kernels
from llmctl.errors import MachineError, ModelError, UserError
from llmctl.loading import export
from llmctl.loading.model import LoadedModel
from llmctl.loading.prepare import prepare
from llmctl.plan import PlanRequest, make_plan
from support import machines

pytestmark = pytest.mark.skipif(kernels.load() is None, reason=f"no kernels: {kernels.missing()}")

Tiny = Callable[[str], Path]
Copy = Callable[..., Path]
LIMITS = {"max_new_tokens": 10}


def load(folder: Path, bits: int | None = 4, **quantization: Any) -> LoadedModel:
    asked = {"bits": bits, "cache": False, **quantization}
    return llmctl.load(folder, quantization=asked, generation=LIMITS)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_architecture_loads_generates_and_saves(
    architecture: str, bits: int, tiny_models: Tiny, tmp_path: Path
) -> None:
    loaded = load(tiny_models(architecture), bits)
    assert loaded.measured.quantization == f"llmctl {bits}-bit, output head 8-bit"
    assert loaded.measured.device_bytes["cpu"] == pytest.approx(loaded.plan.memory.weights["cpu"], rel=0.02)
    assert loaded.measured.parameters == llmctl.load(tiny_models(architecture)).measured.parameters
    asked = {"model": {"id": str(tiny_models(architecture))}, "quantization": {"bits": bits}}
    export.quantize(prepare(settings_from_mapping(asked)), tmp_path / "saved")
    again = llmctl.load(tmp_path / "saved", generation=LIMITS)
    assert again.measured.quantization == loaded.measured.quantization
    assert again.measured.device_bytes == loaded.measured.device_bytes
    assert again.plan.memory.weights == loaded.plan.memory.weights
    assert llmctl.generate(again, "the capital").token_ids == llmctl.generate(loaded, "the capital").token_ids


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_compute_with_the_dequantised_weights(architecture: str, bits: int, tiny_models: Tiny) -> None:
    """Compare with the unquantised architecture that has the dequantised weights, in float32."""
    import torch

    found = kernels.load()
    assert found is not None
    dequantize = {4: found.dequantize_q4, 8: found.dequantize_q8}
    asked = {"load": {"dtype": "float32"}}
    packed = llmctl.load(tiny_models(architecture), quantization={"bits": bits, "cache": False}, **asked).model
    plain = llmctl.load(tiny_models(architecture), **asked).model
    with torch.no_grad():
        for name, module in packed.named_modules():
            for own, how in (module.packed if isinstance(getattr(module, "packed", None), dict) else {}).items():
                for expert, row in enumerate(getattr(module, own)):
                    values = dequantize[how.bits](*how.views(row), how.n, how.k)
                    getattr(plain.get_submodule(name), own)[expert] = values
            if hasattr(module, "packed") and not isinstance(module.packed, dict):
                values = dequantize[module.packed.bits](
                    *module.packed.views(module.weight), module.packed.n, module.packed.k
                )
                weight = plain.get_submodule(name).weight
                weight.copy_(values.T if getattr(module, "is_transposed", False) else values)
        ids = torch.tensor([[5, 17, 42, 99, 3, 8, 250, 31]])
        ours, exact = packed(ids).logits, plain(ids).logits
    # activations are rounded to 8 bits on the way into every product
    assert (ours - exact).norm() / exact.norm() < 0.1
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=-1).min() > 0.99


def test_plain_transformers_quantises_saves_and_loads(tiny_models: Tiny, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from llmctl.quant.hf_quantizer import LlmctlConfig

    for name in ("qwen3_moe", "gemma3"):
        model = AutoModelForCausalLM.from_pretrained(tiny_models(name), quantization_config=LlmctlConfig(bits=4))
        model.save_pretrained(tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        again.save_pretrained(tmp_path / f"{name}-again")
        ids = torch.tensor([[5, 17, 42]])
        with torch.no_grad():
            assert torch.equal(model(ids).logits, again(ids).logits)
        files = [path / "model.safetensors" for path in (tmp_path / name, tmp_path / f"{name}-again")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_the_experts_of_a_mixture_are_quantised_too(name: str, tiny_models: Tiny) -> None:
    ours, theirs = load(tiny_models(name)), load(tiny_models(name), backend="bitsandbytes")
    assert sum(ours.measured.device_bytes.values()) < 0.7 * sum(theirs.measured.device_bytes.values())


def test_the_head_and_any_module_can_stay_unquantised(tiny_models: Tiny) -> None:
    import torch

    loaded = load(tiny_models("llama"), head_bits=None, skip_modules=["down_proj"])
    assert isinstance(loaded.model.lm_head, torch.nn.Linear)
    assert isinstance(loaded.model.model.layers[0].mlp.down_proj, torch.nn.Linear)
    assert loaded.measured.quantization == "llmctl 4-bit"
    assert loaded.measured.device_bytes["cpu"] == pytest.approx(loaded.plan.memory.weights["cpu"], rel=0.02)


def test_a_tied_embedding_shares_the_packed_head(tiny_models: Tiny) -> None:
    loaded = load(tiny_models("qwen3"))
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_weights_with_nan_are_refused_when_packed(tiny_copy: Copy) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_copy()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight contains NaN"):
        load(folder)


def test_a_row_does_not_depend_on_the_rest_of_the_batch(tiny_models: Tiny) -> None:
    import torch

    for bits in (None, 4):
        model = load(tiny_models("llama"), bits).model
        x = torch.randn(7, 64, dtype=torch.bfloat16)
        with torch.no_grad():
            layer = model.model.layers[0].self_attn.q_proj
            assert torch.equal(layer(x)[3], layer(x[3:4])[0])


def test_kernels_multiply_bfloat16_layers_unless_turned_off(tiny_models: Tiny) -> None:
    with_kernels = llmctl.load(tiny_models("llama"))
    without = llmctl.load(tiny_models("llama"), load={"cpu_kernels": False})
    layers = [type(loaded.model.lm_head).__name__ for loaded in (with_kernels, without)]
    assert layers == ["KernelHead", "Linear"]
    assert "linear_kernels=llmctl" in " ".join(map(str, with_kernels.plan.decisions))
    assert "linear_kernels=torch: load.cpu_kernels is false" in map(str, without.plan.decisions)
    assert llmctl.generate(with_kernels, "hello", max_new_tokens=3).token_ids


def decided(machine: Any, folder: Path, **quantization: Any) -> str:
    asked = settings_from_mapping({"model": {"id": str(folder)}, "quantization": {"bits": 4, **quantization}})
    info = prepare(settings_from_mapping({"model": {"id": str(folder)}})).info
    return next(
        str(d) for d in make_plan(PlanRequest(asked.config, machine, info)).decisions if d.key == "quantization"
    )


def test_the_backend_depends_on_the_machine_and_the_configuration(tiny_models: Tiny) -> None:
    folder = tiny_models("llama")
    cpu = replace(machines.LAPTOP, kernels="avx2", packages={"bitsandbytes": "0.50.2"})
    assert decided(cpu, folder).startswith("quantization=llmctl 4-bit: asked for: 4.5 bits per weight")
    assert decided(cpu, folder).endswith("; on a CPU by llmctl's own kernels")
    assert decided(cpu, folder, quant_type="nf4").startswith("quantization=bitsandbytes 4-bit nf4")
    bare = replace(cpu, kernels=None)
    without = "by torch's packed kernels: llmctl's own, which are faster, were not compiled"
    assert decided(bare, folder).startswith("quantization=torch 4-bit: asked for: 5 bits per weight")
    assert decided(bare, folder).endswith(without)
    assert "unlike quantization.backend: torch" in decided(bare, folder, backend="bitsandbytes")
    assert decided(machines.H100, folder).startswith("quantization=bitsandbytes 4-bit nf4")
    with pytest.raises(MachineError):
        decided(bare, folder, backend="llmctl")
    for backend in ("llmctl", "torch"):
        with pytest.raises(UserError, match="cuda:0"):
            decided(machines.H100, folder, backend=backend)


PEAK = """
import json, sys, llmctl
from pathlib import Path
from llmctl.platform_support import peak_memory_bytes
loaded = llmctl.load(sys.argv[1], quantization={"bits": 8, "cache": False})
after = int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
print(json.dumps([peak_memory_bytes(), after, sum(loaded.measured.device_bytes.values())]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are let go on Linux")
def test_the_peak_memory_of_quantising_is_little_more_than_the_result(tiny_copy: Copy) -> None:
    folder = tiny_copy(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16, head_dim=64
    )
    done = subprocess.run([sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=True)
    peak, after, weights = json.loads(done.stdout)
    assert weights > 150e6, "the model is large enough to tell"
    assert peak < 1.25 * after
