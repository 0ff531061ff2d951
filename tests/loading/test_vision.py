"""The towers of composite models: when they are loaded, their planned bytes, and the errors of loading them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llmctl
from llmctl.errors import MachineError, ModelError, UserError
from llmctl.loading.image_encoder import ImageEncoder, image_encoder
from llmctl.loading.vision import load_vision_towers
from llmctl.model.checkpoint import Tensor
from llmctl.quant.registry import stored_quantization
from support.vision.build import build
from support.vision.pictures import picture

SAMPLE = ("qwen3_vl", "qwen3_5", "gemma3", "paligemma", "llava_onevision", "idefics3")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., llmctl.Model]:
    """Return a function that loads a family's checkpoint, which is built once."""
    root = tmp_path_factory.mktemp("vision")

    def load(name: str, **section: Any) -> llmctl.Model:
        folder = root / name if (root / name / "config.json").exists() else build(name, root / name)
        return llmctl.load(folder, load={"dtype": "float32", **section}, generation={"max_new_tokens": 2})

    return load


@pytest.mark.parametrize("name", SAMPLE)
def test_towers_loaded_at_the_start_take_the_planned_bytes(name: str, load: Callable[..., llmctl.Model]) -> None:
    model = load(name, images="always")
    planned = model.plan.memory.images.tower_bytes
    assert image_encoder(model).towers().size_bytes == pytest.approx(planned, rel=0.02)
    assert not model.plan.left_out
    assert model.plan.memory.total_bytes > load(name).plan.memory.total_bytes + planned


def test_images_are_read_beside_weights_from_the_quantised_cache(tmp_path: Path) -> None:
    folder, quantization = build("qwen3_vl", tmp_path / "model"), {"bits": 8, "cache": True}
    first, second = (
        llmctl.load(folder, load={"dtype": "bfloat16"}, quantization=quantization, generation={"max_new_tokens": 4})
        for _ in range(2)
    )
    assert first.plan.quantized_cache is None
    assert second.plan.quantized_cache is not None
    answers = [model.generate("say it", images=[picture(0)]).token_ids for model in (first, second)]
    assert answers[0] == answers[1]


def test_images_are_refused_where_they_are_turned_off(load: Callable[..., llmctl.Model]) -> None:
    model = load("qwen3_vl", images="never")
    assert model.generate("hello").token_ids
    with pytest.raises(UserError, match="images are turned off"):
        model.generate("hello", images=[picture(0)])


def test_a_model_without_towers_cannot_load_them(tiny_models: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="takes no images"):
        llmctl.load(tiny_models("llama"), load={"images": "always"})


def test_memory_that_runs_out_in_a_tower_is_an_error_with_advice(load: Callable[..., llmctl.Model]) -> None:
    model = load("qwen3_vl")

    class Full(ImageEncoder):
        def towers(self) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MachineError, match="memory ran out while encoding an image with"):
        Full(model).features("key", {}, 1)


def test_damaged_files_of_towers_are_named(load: Callable[..., llmctl.Model], tmp_path: Path) -> None:
    model = load("qwen3_vl")
    for file in model.resolved.folder.iterdir():
        content = file.read_bytes()
        damaged = content[: len(content) // 2] if file.suffix == ".safetensors" else content
        (tmp_path / file.name).write_bytes(damaged)
    prepared = replace(model.prepared, resolved=replace(model.resolved, folder=tmp_path))
    with pytest.raises(ModelError, match=r"the towers of .* cannot be loaded"):
        load_vision_towers(prepared, model.model)


def test_towers_in_a_quantised_format_are_refused(load: Callable[..., llmctl.Model]) -> None:
    model = load("qwen3_vl")
    stored = stored_quantization({"quant_method": "bitsandbytes", "load_in_4bit": True})
    packed = Tensor("model.visual.blocks.0.attn.qkv.weight", "U8", (64, 1))
    prepared = replace(
        model.prepared,
        plan=replace(model.plan, quantization=stored),
        info=replace(model.info, left_out=(*model.info.left_out, packed)),
    )
    with pytest.raises(UserError, match=r"stored in bitsandbytes.*blocks\.0\.attn"):
        load_vision_towers(prepared, model.model)
