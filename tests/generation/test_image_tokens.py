"""The tokens of an image of a given size, counted without weights."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llmctl.errors import MachineError, UserError
from llmctl.generation.image_tokens import count_image_tokens
from llmctl.model.info import read_model_info
from support.vision.build import build
from support.vision.reference import Reference

FAMILIES = ("qwen3_vl", "gemma3", "paligemma", "llava_onevision", "idefics3", "internvl")


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_are_those_of_plain_transformers(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / name)
    info, reference = read_model_info(folder), Reference(folder)
    for width, height in ((64, 100), (90, 30), (40, 40)):
        for count in (1, 3):
            picture = Image.new("RGB", (width, height))
            counted = count_image_tokens(folder, info, width=width, height=height, count=count)
            assert count * counted.tokens == _tokens(reference, [picture] * count)


def _tokens(reference: Reference, pictures: list[Any]) -> int:
    """Return the tokens by which images make a prompt longer than placeholders that are texts."""
    token = reference.processor.image_token
    encoded = reference.text_inputs(token * len(pictures), pictures)["input_ids"][0].tolist()
    around = reference.processor.tokenizer("")["input_ids"]
    return len(encoded) - len(around) - _written_around(reference)


def _written_around(reference: Reference) -> int:
    """Return the tokens that PaliGemma's processor writes after the images: the beginning of the text, and its end."""
    return 2 if "PaliGemma" in type(reference.processor).__name__ else 0


def test_a_model_without_towers_takes_no_images(tiny_models: Any) -> None:
    folder = tiny_models("llama")
    with pytest.raises(UserError, match="takes no images"):
        count_image_tokens(folder, read_model_info(folder), width=8, height=8)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    folder = build("lfm2_vl", tmp_path / "lfm2_vl")
    with pytest.raises(MachineError, match="torchvision") as raised:
        count_image_tokens(folder, read_model_info(folder), width=64, height=64)
    assert "pip install torchvision" in str(raised.value.hint)
