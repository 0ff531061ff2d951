"""Images on the command line, with a tiny Qwen3-VL."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.vision.build import build
from support.vision.pictures import picture

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision-language model. Not to be changed by a test."""
    return build("qwen3_vl", tmp_path_factory.mktemp("vision") / "qwen3_vl")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture in a file."""
    picture(0).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another picture in a file."""
    picture(4).save(tmp_path / "b.png")
    return tmp_path / "b.png"


def test_generate_answers_about_images_and_prompt_shows_their_tokens(
    run: Run, vlm: Path, image: Path, other: Path
) -> None:
    command = ("--model", str(vlm), "--image", str(image), "--image", str(other), "say it", "--json")
    done = run("generate", *command, "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [one["file"] for one in document["images"]] == [str(image), str(other)]
    assert [one["sha256"] for one in document["images"]] == [one["sha256"] for one in document["prompt_media"]]
    shown = json.loads(run("prompt", *command).stdout)
    assert shown["token_ids"] == document["prompt_ids"]
    first, second = shown["images"]
    assert f"<image: {first['tokens']} tokens>" in shown["text"]
    assert first["last"] - first["first"] + 1 == first["tokens"] > 1
    assert second["first"] > first["last"]
    assert shown["processed_with"] in ("Pillow", "torchvision")


def test_standard_input_is_one_image_or_the_prompt(run: Run, vlm: Path) -> None:
    done = run("prompt", "--model", str(vlm), "--image", "-", "say it", stdin="a text")
    assert done.returncode == 2
    assert "image 1" in done.stderr, "standard input, a text in this test, was read as an image"
    for arguments in (("--image", "-"), ("--image", "-", "-"), ("--image", "-", "--image", "-", "hello")):
        refused = run("prompt", "--model", str(vlm), *arguments, stdin="hello")
        assert refused.returncode == 2
        assert "standard input" in refused.stderr


def test_a_picture_that_cannot_be_read_is_refused(run: Run, vlm: Path) -> None:
    refused = run("generate", "--model", str(vlm), "--image", "missing.png", "hello")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "missing.png does not exist" in refused.stderr


def test_a_model_without_towers_takes_no_images(run: Run, tiny_models: Callable[[str], Path], image: Path) -> None:
    for command in ("generate", "prompt"):
        refused = run(command, "--model", str(tiny_models("llama")), "--image", str(image), "hello")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "takes no images" in refused.stderr


def test_a_replay_needs_the_same_pictures(run: Run, vlm: Path, image: Path, other: Path, tmp_path: Path) -> None:
    command = ("generate", "--model", str(vlm), "--image", str(image), "say it", "-n", "4", "--json")
    recording = tmp_path / "run.json"
    recording.write_text(run(*command).stdout)
    for arguments in ((), ("--image", str(other))):
        refused = run("replay", str(recording), *arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "image 1 of 1" in refused.stderr
    done = run("replay", str(recording), "--image", str(other), "--image", str(image))
    assert done.returncode == 0, done.stderr
    assert "identical, 4 tokens" in done.stdout
