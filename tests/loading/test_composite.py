"""Composite models generate text with their language model; their towers are not in memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import llmctl
from llmctl.cpu import kernels
from llmctl.cpu.program import compiled
from llmctl.errors import ModelError
from llmctl.generation.engine import engine_for_many
from llmctl.generation.engine.packable import is_packable
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, make_request
from llmctl.generation.stream import stream_request
from llmctl.loading.model import LoadedModel
from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo, check_generates_text, read_model_info
from llmctl.model.towers import is_composite, split_towers, tower_of
from support.composite import COMPOSITES, write_composite

PROMPTS = [(5,), tuple(range(7, 16)), tuple(range(300, 260, -1))]
# They contain a model with a program.
COMPILED = ("llava", "mistral3", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "gemma4", "llama4")
SETTINGS = {"load": {"dtype": "float32"}, "generation": {"max_new_tokens": 12}}
Composites = Callable[[str], Path]


@pytest.fixture(scope="module")
def composites(tmp_path_factory: pytest.TempPathFactory) -> Composites:
    """A tiny composite model of a type, made once: `composites("llava")`."""
    root = tmp_path_factory.mktemp("composites")

    def make(model_type: str) -> Path:
        folder = root / model_type
        return folder if folder.exists() else write_composite(folder, model_type)

    return make


def requests_for(loaded: LoadedModel) -> list[Request]:
    return [make_request(loaded, Prompt(ids)) for ids in PROMPTS]


def alone(loaded: LoadedModel, request: Request) -> tuple[int, ...]:
    *_, last = stream_request(loaded, request)
    assert last.completion is not None
    return last.completion.token_ids


def expected_answers(folder: Path) -> list[tuple[int, ...]]:
    """The answers of plain transformers, from the whole composite model."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32).eval()
    if model.config.model_type == "llama4":
        model = model.language_model  # transformers 5.24: the composite class fails without an image
    answers = []
    for ids in PROMPTS:
        given = torch.tensor([ids])
        output = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=[0, 2],
        )
        answers.append(tuple(output[0, len(ids) :].tolist()))
    return answers


@pytest.mark.parametrize("model_type", COMPOSITES)
def test_text_equals_that_of_the_whole_model_in_transformers(composites: Composites, model_type: str) -> None:
    loaded = llmctl.load(composites(model_type), **SETTINGS)
    requests = requests_for(loaded)
    answers = [alone(loaded, request) for request in requests]
    together = dict(engine_for_many(loaded).run(enumerate(requests)))
    assert answers == expected_answers(composites(model_type))
    assert [together[number].token_ids for number in range(len(requests))] == answers
    assert is_packable(loaded)
    assert (compiled(loaded.model) is not None) == (kernels.load() is not None and model_type in COMPILED)


@pytest.mark.parametrize("model_type", COMPOSITES)
def test_towers_are_not_in_memory_and_the_plan_counts_them_separately(composites: Composites, model_type: str) -> None:
    folder = composites(model_type)
    loaded = llmctl.load(folder, **SETTINGS)
    plan, stored = loaded.plan, load_file(folder / "model.safetensors")
    towers = {name for name in stored if any(name.startswith(f"{tower}.") for tower in plan.left_out)}
    assert towers
    assert sum(plan.left_out.values()) == sum(stored[name].nbytes for name in towers)
    weights = sum(tensor.numel() for name, tensor in stored.items() if name not in towers)
    assert loaded.measured.parameters == pytest.approx(weights, abs=2)  # Gemma 4 stores a buffer for each layer
    assert sum(plan.memory.weights.values()) == pytest.approx(4 * weights, rel=0.01)
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())
    assert next(decision.value for decision in plan.decisions if decision.key == "left_out") == ", ".join(plan.left_out)


def test_an_image_meets_an_error_that_names_the_tower(composites: Composites) -> None:
    loaded = llmctl.load(composites("llava"), **SETTINGS)
    with pytest.raises(RuntimeError, match=r"model\.vision_tower is not in memory"):
        loaded.model(input_ids=torch.tensor([[5]]), pixel_values=torch.zeros(1, 3, 28, 28))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantisation_applies_to_the_language_model_and_its_cache_answers_alike(
    composites: Composites, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_CACHE_DIR", str(tmp_path))
    first, second = (
        llmctl.load(composites("gemma3"), quantization={"bits": bits}, generation={"max_new_tokens": 8})
        for _ in range(2)
    )
    planned, real = sum(first.plan.memory.weights.values()), sum(first.measured.device_bytes.values())
    assert planned == pytest.approx(real, rel=0.02)
    assert f"{bits}-bit" in first.measured.quantization
    assert [alone(first, one) for one in requests_for(first)] == [alone(second, one) for one in requests_for(second)]


def test_weights_missing_from_the_language_model_or_unknown_to_it_are_refused(
    composites: Composites, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    for original in composites("llava").iterdir():
        (tmp_path / original.name).write_bytes(original.read_bytes())
    tensors = load_file(file)
    save_file(tensors | {"language_model.model.layers.0.extra.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(ModelError) as unexpected:
        llmctl.load(tmp_path, **SETTINGS)
    assert unexpected.value.details["unexpected_keys"] == ["model.language_model.layers.0.extra.weight"]
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError) as missing:
        llmctl.load(tmp_path, **SETTINGS)
    assert missing.value.details["missing_keys"] == ["model.language_model.norm.weight"]


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("blip-2", "needs an image with every text"),
        ("idefics", "needs an image with every text"),
        ("udop", "an encoder-decoder model"),
        ("pi0", "controls robots"),
        ("diffusion_gemma", "by diffusion"),
    ],
)
def test_types_without_text_alone_are_refused_with_the_reason(model_type: str, reason: str) -> None:
    config = {"model_type": model_type, "architectures": ["SomethingForConditionalGeneration"]}
    with pytest.raises(ModelError) as refused:
        check_generates_text(ModelInfo("acme/model", config, ()))
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", "vision_tower"),
        ("model.visual.blocks.0.norm1.weight", "model.visual"),
        ("model.audio_tower.layers.0.norm.weight", "model.audio_tower"),
        ("mlp1.0.weight", "mlp1"),
        ("model.connector.modality_projection.proj.weight", "model.connector"),
        ("language_model.model.layers.3.mlp.up_proj.weight", None),
        ("model.layers.1.mlp.vision_moe.gate.weight", None),  # inside a layer of the language model
        ("model.something_new.0.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_towers_are_recognised_by_name_and_unknown_modules_are_loaded(name: str, tower: str | None) -> None:
    assert tower_of(name, "llava") == tower


def test_a_language_model_keeps_all_of_its_weights() -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    tensor = Tensor("model.vision.weight", "F32", (2,))
    assert not is_composite(config)
    assert split_towers(config, [tensor]) == ((tensor,), ())


def test_the_layers_of_a_tower_do_not_stand_in_for_those_of_the_language_model(
    composites: Composites, tmp_path: Path
) -> None:
    for original in composites("llava").iterdir():
        (tmp_path / original.name).write_bytes(original.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {"vision_tower.encoder.layers.2.weight": torch.zeros(2)}
    save_file(tensors | extra, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="says 3 layers, the weights have 2"):
        read_model_info(tmp_path)
