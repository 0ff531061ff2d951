"""MXFP4 checkpoints (gpt-oss): kept in 4 bits where llmctl's kernels compute, unpacked by transformers elsewhere."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.cpu import kernels
from llmctl.errors import ModelError, UserError
from llmctl.loading.model import LoadedModel
from llmctl.machine.detection import Machine
from llmctl.model.checkpoint import Tensor
from llmctl.plan import Plan, PlanRequest, make_plan
from llmctl.reproduce.script import transformers_script
from support.machines import H100, LAPTOP, LLAMA3_8B, MAC
from support.prequantized import write_checkpoint
from support.tiny import edit_json

needs_kernels = pytest.mark.skipif(kernels.load() is None, reason=f"no kernels: {kernels.missing()}")
COMPILED = replace(LAPTOP, kernels="avx2")
PROMPTS = ["once upon a time there", "the capital of france", "a"]
WEIGHTS = 2 * 4 * (512 * 128 + 128 * 256)  # of all experts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("mxfp4") / "model", "mxfp4")


@pytest.fixture(scope="module")
def unpacked(checkpoint: Path) -> Any:
    """Return the model with the experts that transformers unpacks, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, device_map={"": "cpu"})


def load(folder: Path, dtype: str = "float32", **sections: Any) -> LoadedModel:
    return llmctl.load(folder, load={"dtype": dtype}, chat={"raw": True}, generation={"max_new_tokens": 12}, **sections)


def plan(machine: Machine, **config: Any) -> Plan:
    tensors = (
        Tensor("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", (4, 50, 3, 16)),
        Tensor("model.layers.0.mlp.experts.gate_up_proj_scales", "U8", (4, 50, 3)),
        Tensor("model.embed_tokens.weight", "BF16", (1000, 64)),
    )
    stored = {"quantization_config": {"quant_method": "mxfp4"}}
    info = replace(LLAMA3_8B, config={**LLAMA3_8B.config, **stored}, tensors=tensors)
    return make_plan(PlanRequest(settings_from_mapping(config).config, machine, info))


@needs_kernels
def test_the_weights_in_memory_are_those_of_the_checkpoint(checkpoint: Path, unpacked: Any) -> None:
    import torch

    loaded = load(checkpoint)
    for ours, theirs in zip(loaded.model.model.layers, unpacked.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            packed, rows = ours.mlp.experts.packed[name], getattr(ours.mlp.experts, name)
            values = torch.stack([packed.rows(row, torch.arange(packed.n)) for row in rows])
            assert torch.equal(values, getattr(theirs.mlp.experts, name).transpose(1, 2))


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_copy_in_memory_takes_the_planned_bytes(checkpoint: Path, dtype: str) -> None:
    loaded = load(checkpoint, dtype)
    packed = [value for name, value in loaded.model.named_parameters() if name.endswith(("gate_up_proj", "down_proj"))]
    assert sum(value.nbytes for value in packed) * 8 == 4.25 * WEIGHTS
    assert loaded.measured.device_bytes["cpu"] == pytest.approx(loaded.plan.memory.weights["cpu"], rel=0.01)
    assert loaded.measured.quantization == "mxfp4 4-bit"
    assert "kept in 4 bits" in loaded.plan.reason("quantization")
    assert loaded.measured.parameters == loaded.info.parameters


@needs_kernels
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_experts_compute_with_these_weights_and_activations_in_8_bits(
    checkpoint: Path, unpacked: Any, tokens: int
) -> None:
    import torch

    torch.manual_seed(tokens)
    experts, plain = load(checkpoint).model.model.layers[0].mlp.experts, unpacked.model.layers[0].mlp.experts
    x = torch.randn(tokens, 128)
    for expert in range(4):
        chosen = torch.full((tokens, 1), expert)
        gate_up = _rounded(x) @ plain.gate_up_proj[expert].double() + plain.gate_up_proj_bias[expert]
        expected = _rounded(plain._apply_gate(gate_up).float()) @ plain.down_proj[expert].double()
        expected = expected + plain.down_proj_bias[expert]
        ours = experts(x, chosen, torch.ones(tokens, 1))
        assert (ours - expected).norm() < 1e-3 * expected.norm()
        alone = experts(x[-1:], chosen[-1:], torch.ones(1, 1))
        assert torch.equal(alone, ours[-1:]), "the same bits whatever stands beside a row"


def _rounded(x: Any) -> Any:
    """Round x as the kernels do, to 8 bits in blocks of 32. Return float64."""
    blocks = x.unflatten(-1, (-1, 32))
    peaks = blocks.abs().amax(-1, keepdim=True)
    return ((blocks * (127.0 / peaks)).round().double() * (peaks / 127.0)).flatten(-2)


@needs_kernels
def test_logits_are_close_to_those_of_the_unpacked_model(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder, ids = tmp_path / "model", torch.tensor([[5, 17, 42, 99, 3, 8, 250, 31]])
    shutil.copytree(checkpoint, folder)
    edit_json(folder / "config.json", num_experts_per_tok=4)  # all of them: rounding cannot choose another one
    unpacked = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
    with torch.no_grad():
        ours, exact = load(folder).model(ids).logits, unpacked(ids).logits
    assert (ours - exact).norm() < 0.1 * exact.norm()
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=-1).min() > 0.99


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_is_the_same_alone_and_in_a_batch(checkpoint: Path, dtype: str) -> None:
    from llmctl.cpu.program.compile import compiled

    loaded = load(checkpoint, dtype)
    assert compiled(loaded.model) is not None
    together = llmctl.generate(loaded, PROMPTS)
    assert [one.token_ids for one in together] == [llmctl.generate(loaded, prompt).token_ids for prompt in PROMPTS]


@needs_kernels
def test_the_script_for_transformers_gives_the_same_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(checkpoint)
    script = transformers_script(loaded.prepared, prompt=PROMPTS[0])
    assert 'settings["quant_method"] = "llmctl_mxfp4"' in script
    exec(compile(script, "script", "exec"), {})
    assert capsys.readouterr().out == f"{llmctl.generate(loaded, PROMPTS[0]).text}\n"


@needs_kernels
def test_a_scale_that_is_not_a_number_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj_scales"][2, 100, 3] = 255
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"experts\.down_proj contains NaN"):
        load(folder)


def test_four_bits_keep_the_checkpoint_as_it_is_and_eight_are_refused_with_the_reason() -> None:
    kept = plan(COMPILED, quantization={"bits": 4})
    assert kept.memory.weights == plan(COMPILED).memory.weights
    assert kept.reason("quantization").startswith("asked for 4-bit: stored this way, kept in 4 bits")
    with pytest.raises(UserError, match="more bits take more memory and are no more exact") as refused:
        plan(COMPILED, quantization={"bits": 8})
    assert refused.value.hint


def test_rows_are_planned_in_groups_of_sixteen() -> None:
    weights, others = 4 * 64 * 96, 2 * 1000 * 64
    assert sum(plan(COMPILED).memory.weights.values()) == weights * 4.25 / 8 + others


@pytest.mark.parametrize(
    ("machine", "config", "reason"),
    [
        (replace(LAPTOP, kernels=None), {}, "not compiled"),
        (COMPILED, {"load": {"cpu_kernels": False}}, "load.cpu_kernels is false"),
        (replace(COMPILED, compiler="g++"), {"generation": {"compile": True}}, "generation.compile"),
        (COMPILED, {"model": {"id": "m", "adapters": ["a"]}}, "adapters may change the experts"),
        (H100, {}, "compiled code from the Hub"),
        (MAC, {}, "compiled code from the Hub"),
    ],
)
def test_where_the_kernels_do_not_compute_the_weights_are_unpacked(
    machine: Machine, config: dict[str, Any], reason: str
) -> None:
    unpacked = plan(machine, **config)
    assert sum(unpacked.memory.weights.values()) == 2 * (4 * 50 * 96 + 1000 * 64)
    assert reason in unpacked.reason("quantization")
    assert "unpacked to" in unpacked.reason("quantization")
