"""The tokens of an image of a given size, counted without weights."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llmctl.errors import MachineError, UserError
from llmctl.generation.image_tokens import count_image_tokens
from llmctl.model.info import read_model_info
from support.vision.build import build
from support.vision.families import FAMILIES
from support.vision.reference import Reference

NAMES = ("qwen3_vl", "gemma3", "paligemma", "llava_onevision", "idefics3", "internvl")


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_plain_transformers(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / name)
    info, reference = read_model_info(folder), Reference(folder)
    for width, height in ((64, 100), (90, 30), (40, 40)):
        for count in (1, 3):
            picture = Image.new("RGB", (width, height))
            counted = count_image_tokens(folder, info, width=width, height=height, count=count)
            assert counted.all_tokens == _tokens(name, reference, [picture] * count)
            assert counted.tokens <= counted.all_tokens


def _tokens(name: str, reference: Reference, pictures: list[Any]) -> int:
    """Return the tokens by which images make a prompt longer."""
    family = FAMILIES[name]
    if family.template is None:
        with_images = reference.text_inputs(family.placeholder * len(pictures) + "x", pictures)["input_ids"][0]
        return len(with_images) - len(reference.processor.tokenizer("x")["input_ids"])
    text = {"type": "text", "text": "x"}
    images = [{"type": "image", "image": picture} for picture in pictures]
    counts = [
        reference.chat_inputs([{"role": "user", "content": content}])["input_ids"].shape[1]
        for content in ([text], [*images, text])
    ]
    return int(counts[1] - counts[0])


def test_a_model_without_towers_takes_no_images(tiny_models: Any) -> None:
    folder = tiny_models("llama")
    with pytest.raises(UserError, match="takes no images"):
        count_image_tokens(folder, read_model_info(folder), width=8, height=8)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    folder = build("lfm2_vl", tmp_path / "lfm2_vl")
    with pytest.raises(MachineError, match="torchvision") as raised:
        count_image_tokens(folder, read_model_info(folder), width=64, height=64)
    assert "pip install torchvision" in str(raised.value.hint)
