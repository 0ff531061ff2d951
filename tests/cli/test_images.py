"""Images on the command line, with a tiny Qwen3-VL."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli._dropped_files import leading_images
from llmctl.cli._image_input import PromptInput
from llmctl.config import Config, Settings
from llmctl.generation.image_input import read_images
from llmctl.loading.prepare import prepare
from llmctl.plan.images import ImageRequest
from support.chat import Chat
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


def test_score_ranks_and_scores_after_images(run: Run, vlm: Path, image: Path, other: Path, tmp_path: Path) -> None:
    command = ("score", "--model", str(vlm), "--json")
    question = ("--image", str(image), "--prompt", "say it")
    done = run(*command, *question, "--choices", "yes,no")
    assert done.returncode == 0, done.stderr
    choices = {one["text"]: one["logprob"] for one in json.loads(done.stdout)["choices"]}
    [text] = json.loads(run(*command, *question, "--text", "yes").stdout)["texts"]
    assert text["logprob"] == pytest.approx(choices["yes"], abs=1e-4)
    rows: list[dict[str, Any]] = [
        {"id": 1, "prompt": "say it", "images": ["a.png"], "completion": "yes"},
        {"id": 2, "prompt": "say it", "images": ["b.png"], "completion": "yes"},
        {"id": 3, "prompt": "say it", "completion": "yes"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(*command[:3], "--input", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stderr
    scores = [json.loads(line)["logprob"] for line in done.stdout.splitlines()]
    assert scores[0] == pytest.approx(choices["yes"], abs=1e-4)
    assert len(set(scores)) == 3


def test_score_refuses_images_that_it_cannot_use(
    run: Run, vlm: Path, tiny_models: Callable[[str], Path], image: Path, tmp_path: Path
) -> None:
    llama = str(tiny_models("llama"))
    refused = run("score", "--model", llama, "--image", str(image), "--prompt", "say it", "--choices", "yes,no")
    assert (refused.returncode, "takes no images" in refused.stderr) == (2, True)
    refused = run("score", "--model", str(vlm), "--image", str(image), "--text", "yes")
    assert (refused.returncode, "belong to a prompt" in refused.stderr) == (2, True)
    row = {"prompt": "say it", "images": ["missing.png"], "completion": "yes"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    refused = run("score", "--model", str(vlm), "--input", str(tmp_path / "rows.jsonl"))
    assert refused.returncode == 2
    assert "rows.jsonl:1: " in refused.stderr
    assert "missing.png" in refused.stderr


def test_a_limit_of_tokens_shrinks_images_in_prompts_and_plans(run: Run, vlm: Path, image: Path) -> None:
    picture(2).save(image)
    shown = json.loads(run("prompt", "--model", str(vlm), "--image", str(image), "say it", "--json").stdout)
    assert shown["images"][0]["tokens"] > 12
    limit = ("--max-image-tokens", "12", "--json")
    shown = json.loads(run("prompt", "--model", str(vlm), "--image", str(image), "say it", *limit).stdout)
    assert shown["images"][0]["tokens"] <= 12
    planned = json.loads(run("plan", str(vlm), "--images", "2", "--image-size", "64x100", *limit).stdout)
    assert planned["images"]["tokens"] <= 14, "with the two tokens that the template writes around an image"
    assert planned["images"]["all_tokens"] == 2 * planned["images"]["tokens"]
    refused = run("generate", "--model", str(vlm), "--image", str(image), "say it", "--max-image-tokens", "1")
    assert (refused.returncode, "load.max_image_tokens is 1" in refused.stderr) == (2, True)


def test_the_plan_of_an_answer_counts_its_images(vlm: Path, image: Path, other: Path) -> None:
    given = PromptInput("say it", (str(image), str(other)), tuple(read_images([image, other])))
    settings = Settings(Config.model_validate({"model": {"id": str(vlm)}}))
    without, counted = (prepare(settings, images=images).plan.memory for images in (None, given.images_to_plan))
    assert given.images_to_plan == ImageRequest(2, 90, 30), "as large as the largest"
    assert counted.images.tower_bytes > 0 == without.images.tower_bytes
    assert counted.total_bytes > without.total_bytes


def test_rows_have_images_and_a_changed_picture_is_answered_again(
    run: Run, vlm: Path, image: Path, other: Path, tmp_path: Path
) -> None:
    url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    contents = [{"type": "image_url", "image_url": {"url": one}} for one in (url, "https://example.com/a.png")]
    rows: list[dict[str, Any]] = [
        {"id": "path", "prompt": "say it", "images": ["a.png"]},
        {"id": "data", "messages": [{"role": "user", "content": [contents[0], {"type": "text", "text": "say it"}]}]},
        {"id": "url", "messages": [{"role": "user", "content": [contents[1]]}]},
        {"id": "missing", "prompt": "say it", "images": ["c.png"]},
        {"id": "broken", "prompt": "say it", "images": ["rows.jsonl"]},
        {"id": "two", "prompt": "say it", "images": ["a.png", "b.png"]},
        {"id": "text", "prompt": "say it"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("generate", "--model", str(vlm), "--input", str(tmp_path / "rows.jsonl"), "--output", "out.jsonl")

    def answers() -> tuple[dict[str, Any], str]:
        done = run(*command, "-n", "4")
        lines = (tmp_path / "work" / "out.jsonl").read_text().splitlines()
        return {row["id"]: row for row in map(json.loads, lines)}, done.stderr

    first, _ = answers()
    assert first["path"]["text"] == first["data"]["text"] != first["text"]["text"]
    assert first["two"]["prompt_tokens"] > first["path"]["prompt_tokens"]
    assert "not fetched" in first["url"]["error"]["message"]
    assert first["missing"]["error"]["message"].endswith("c.png does not exist")
    assert "rows.jsonl is" in first["broken"]["error"]["message"]
    other.replace(image)
    picture(0).save(other)
    second, notes = answers()
    assert "2 of them answered before" in notes, "those without a picture of a file that changed"
    assert second["path"]["key"] != first["path"]["key"]
    assert second["path"]["prompt_tokens"] != first["path"]["prompt_tokens"]


def test_images_of_a_conversation_are_attached_kept_saved_and_resumed(
    vlm: Path, image: Path, other: Path, tmp_path: Path
) -> None:
    chat = Chat(tmp_path, "--model", str(vlm), "-n", "4", "--set", "generation.temperature=0")
    plain, _ = chat.ask("say it")
    assert "removed: say it" in chat.say("/undo")
    assert "attached a.png (40 x 40)" in chat.say(f"'{image}'")
    with_image, computed = chat.ask("say it")
    assert with_image > plain
    assert computed < with_image, "the turn that was undone began with the same tokens"
    chat.say("/retry")
    assert "attached b.png (90 x 30)" in chat.say("/image b.png")
    assert "images of the next message: none" in chat.say("/image none")
    chat.child.send("b.png and this?\r")
    chat.child.expect(r"attached b.png \(90 x 30\)")
    chat.child.expect("tokens in")
    chat.prompt()
    assert "saved 4 messages" in chat.say("/save talk.jsonl")
    assert chat.leave() == 0

    saved = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [[one["path"] for one in line.get("media", [])] for line in saved[1::2]] == [[str(image)], [str(other)]]
    again = Chat(tmp_path, "--resume", "talk.jsonl", "-n", "4")
    assert "removed: and this?" in again.say("/undo")
    tokens, _ = again.ask("and?")
    assert tokens > with_image
    assert again.leave() == 0


def test_a_conversation_whose_picture_has_changed_is_not_resumed(run: Run, vlm: Path, image: Path) -> None:
    talk = [
        {"schema": "llmctl.chat/1", "model": str(vlm), "commit": None, "system": None},
        {"role": "user", "content": "hi", "media": [{"kind": "image", "sha256": "0" * 64, "path": str(image)}]},
    ]
    file = image.parent / "talk.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in talk))
    refused = run("chat", "--resume", str(file), stdin="hello\n")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a.png is no longer the picture of this message" in refused.stderr


def test_paths_at_the_beginning_of_a_message_are_images(image: Path, other: Path) -> None:
    blank = image.with_name("my cat.png")
    image.rename(blank)
    escaped = str(blank).replace(" ", "\\ ")
    for written in (str(blank), f"'{blank}'", f'"{blank}"', escaped, blank.as_uri(), f"{blank} "):
        assert leading_images(written) == ([blank], ""), written
    assert leading_images(f"{escaped} what is it?") == ([blank], "what is it?")
    assert leading_images(f"'{blank}' {other}") == ([blank, other], "")
    for text in ("", "/help", "a.png is missing", f" {other}", f"what is {other}?", str(image.parent), "'"):
        assert leading_images(text) == ([], text)
