"""Answers about images: equal to those of plain transformers, alone, together, and from the prefix cache."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import BatchFeature

import llmctl
from llmctl.errors import UserError
from llmctl.generation.engine import engine_for_chat, engine_for_many
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.image_tokens import count_image_tokens
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from llmctl.loading.image_encoder import image_encoder
from llmctl.model.info import read_model_info
from support.vision.build import build
from support.vision.check import answer_of, is_equal, load_family, prompt_of, request_of
from support.vision.conversations import CONVERSATIONS
from support.vision.families import FAMILIES
from support.vision.pictures import picture
from support.vision.reference import Answer, Reference

# M-RoPE with DeepStack, a hybrid with recurrent states, images that are seen whole, and prompts that are
SAMPLE = ("qwen3_vl", "qwen3_5", "gemma3", "paligemma", "llava_onevision")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's checkpoint, built once."""
    root = tmp_path_factory.mktemp("vision")
    return lambda name: root / name if (root / name / "config.json").exists() else build(name, root / name)


@pytest.fixture(scope="module")
def loaded(checkpoint: Callable[[str], Path]) -> Callable[[str], llmctl.Model]:
    """Return a family's model, loaded once."""
    models: dict[str, llmctl.Model] = {}

    def load(name: str) -> llmctl.Model:
        if name not in models:
            models[name] = load_family(checkpoint(name))
        return models[name]

    return load


def expect(ids: Sequence[int], answer: Answer) -> None:
    """Check an answer, which may end earlier than the reference's, at an end token."""
    assert is_equal(ids, answer), (ids, answer.ids)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # PaliGemma's processor
@pytest.mark.parametrize("name", SAMPLE)
def test_answers_equal_those_of_plain_transformers_alone_and_together(
    name: str, checkpoint: Callable[[str], Path], loaded: Callable[[str], llmctl.Model]
) -> None:
    reference, model, family = Reference(checkpoint(name)), loaded(name), FAMILIES[name]
    conversations = [one for one in CONVERSATIONS if one not in family.cannot]
    expected = [reference.answer(one, family) for one in conversations]
    requests = [request_of(model, prompt_of(one, name)) for one in conversations]
    for request, answer in zip(requests, expected, strict=True):
        assert request.prompt.ids == answer.prompt
        expect(answer_of(engine_for_many(model), request), answer)
    together = dict(engine_for_many(model).run(enumerate(requests)))
    for number, answer in enumerate(expected):
        expect(together[number].token_ids, answer)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "gemma3"])
def test_a_second_turn_about_an_image_computes_only_its_new_tokens(
    name: str, loaded: Callable[[str], llmctl.Model]
) -> None:
    model = loaded(name)
    engine, encoder = engine_for_many(model), image_encoder(model)
    first: list[Mapping[str, Any]] = [{"role": "user", "content": [_image(4), _text("what is it?")]}]
    request = request_of(model, first)
    before = encoder.encoded
    answer = answer_of(engine, request)
    assert encoder.encoded == before + 1
    assert engine.prefilled_tokens == len(request.prompt)
    text = model.tokenizer.decode([token for token in answer if token not in request.eos_token_ids])
    turn = [*first, {"role": "assistant", "content": [_text(text)]}, {"role": "user", "content": [_text("and now?")]}]
    second = request_of(model, turn)
    known = request.prompt.followed_by(answer).common(second.prompt)
    assert known >= len(request.prompt), "the second turn begins with the first"
    computed = engine.prefilled_tokens
    again = answer_of(engine, second)
    assert encoder.encoded == before + 1
    assert engine.prefilled_tokens - computed < len(second.prompt) - len(request.prompt) + 16
    assert again == answer_of(engine_for_many(model), second)


def test_a_prompt_without_images_is_seen_whole_as_by_plain_transformers(
    checkpoint: Callable[[str], Path], loaded: Callable[[str], llmctl.Model]
) -> None:
    import torch

    reference, model = Reference(checkpoint("paligemma")), loaded("paligemma")
    prompts = [Prompt(ids) for ids in ((81, 184, 220), tuple(range(40, 57)))]
    together = dict(engine_for_many(model).run((n, make_request(model, one)) for n, one in enumerate(prompts)))
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.ids])
        expect(
            together[number].token_ids,  # type: ignore[union-attr]
            reference.generate(BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)})),
        )


def test_images_that_differ_in_one_pixel_share_no_token(loaded: Callable[[str], llmctl.Model]) -> None:
    model = loaded("qwen3_vl")
    other = picture(4).copy()
    other.putpixel((3, 3), (0, 255, 0))
    prompts = [
        request_of(model, [{"role": "user", "content": [{"type": "image", "image": one}, _text("say it")]}]).prompt
        for one in (picture(4), other)
    ]
    assert prompts[0].ids == prompts[1].ids
    assert prompts[0].common(prompts[1]) == prompts[0].media[0].positions[0]


def test_images_come_as_an_argument_or_as_parts_of_a_message(
    loaded: Callable[[str], llmctl.Model], tmp_path: Path
) -> None:
    model = loaded("qwen3_vl")
    picture(0).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    texts = {
        model.generate("say it", images=[tmp_path / "a.png"]).text,
        model.generate("say it", images=[content]).text,
        model.generate("say it", images=[picture(0)]).text,
        model.generate([{"role": "user", "content": [_image(0), _text("say it")]}]).text,
    }
    assert len(texts) == 1
    assert model.generate("say it").text not in texts


def test_the_text_of_a_placeholder_is_text(loaded: Callable[[str], llmctl.Model]) -> None:
    model = loaded("qwen3_vl")
    plain = request_of(model, "what is <|image_pad|>?").prompt
    assert LazyImageProcessor(model)().token_id not in plain.ids


def test_a_model_without_towers_says_that_it_takes_no_images(tiny_models: Callable[[str], Path]) -> None:
    model = llmctl.load(tiny_models("llama"))
    with pytest.raises(UserError, match="takes no images"):
        model.generate("hello", images=[picture(0)])


def test_one_bad_image_of_a_batch_fails_alone(loaded: Callable[[str], llmctl.Model], tmp_path: Path) -> None:
    model = loaded("qwen3_vl")
    picture(0).save(tmp_path / "a.png")
    rows = [
        {"prompt": "say it", "images": [picture(0)]},
        [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "missing.png")}, _text("say it")]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": str(tmp_path / "a.png")}, _text("say it")]}],
    ]
    first, second, third = llmctl.generate_batch(model, rows)
    assert first.text == third.text == model.generate("say it", images=[picture(0)]).text
    assert "does not exist" in str(second.error)


def test_an_object_and_a_conversation_are_about_images(loaded: Callable[[str], llmctl.Model]) -> None:
    model = loaded("qwen3_vl")
    assert model.generate_object("yes or no?", Literal["yes", "no"], images=[picture(0)]) in ("yes", "no")
    chat = model.chat()
    assert chat.send("say it", images=[picture(0)]).text == model.generate("say it", images=[picture(0)]).text
    assert chat.history[0]["content"][1] == _text("say it")
    before = [message.images for message in chat.messages]
    list(chat.edit("say more"))
    assert [message.images for message in chat.messages] == before


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_texts_after_images_are_scored_like_plain_transformers(
    name: str, checkpoint: Callable[[str], Path], loaded: Callable[[str], llmctl.Model]
) -> None:
    reference, model = Reference(checkpoint(name)), loaded(name)
    texts = ("a red house", "blue")
    inputs = reference.chat_inputs([{"role": "user", "content": [_image(0), _text("say it")]}])
    expected = {
        text: reference.logprobs(inputs, model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    }
    scored = model.score(texts[0], prompt="say it", images=[picture(0)], top=2)
    assert [one.logprob for one in scored.logprobs] == pytest.approx(expected[texts[0]], abs=1e-3)
    assert all(len(one.top) == 2 for one in scored.logprobs)
    before = image_encoder(model).encoded
    ranked = model.rank("say it", texts, images=[picture(0)], by="mean")
    totals = {one.score.text: one.score.total for one in ranked}
    assert totals == pytest.approx({text: sum(logprobs) for text, logprobs in expected.items()}, abs=1e-3)
    assert image_encoder(model).encoded == before, "the image is known"
    with pytest.raises(UserError, match="belong to a prompt"):
        model.score("a text", images=[picture(0)])


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl", "idefics3", "mistral3"])
def test_images_are_shrunk_to_a_limit_of_tokens(name: str, checkpoint: Callable[[str], Path]) -> None:
    large = picture(1).resize((900, 300))

    def prompt(limit: int | None) -> Prompt:
        model = llmctl.load(checkpoint(name), load={"dtype": "float32", "max_image_tokens": limit})
        request = request_of(model, [{"role": "user", "content": [{"type": "image", "image": large}, _text("hi")]}])
        assert len(answer_of(engine_for_many(model), replace(request, budget=2))) == 2
        return request.prompt

    whole = prompt(None)
    smaller = prompt(2 * len(whole.media[0].positions) // 3)
    assert len(smaller) < len(whole)
    assert smaller.media[0].sha256 == whole.media[0].sha256, "the hash is that of the picture as it was given"
    with pytest.raises(UserError, match="max_image_tokens is 1"):
        prompt(1)


def test_a_budget_of_tokens_is_lowered_to_one_that_the_processor_accepts(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("gemma4"), tmp_path / "gemma4")
    file = next(path for path in folder.glob("*processor_config.json") if "max_soft_tokens" in path.read_text())
    file.write_text(re.sub(r'"max_soft_tokens": \d+', '"max_soft_tokens": 560', file.read_text()))
    info = read_model_info(folder, source="gemma4")
    counts = [
        count_image_tokens(folder, info, width=900, height=900, max_tokens=limit).tokens for limit in (None, 300, 100)
    ]
    assert counts[0] > 300 >= counts[1] > 100 >= counts[2]


def _image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": picture(number)}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_text_without_images_runs_as_before_when_there_are_no_kernels(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmctl.cpu.kernels.load", lambda: None)
    model = llmctl.load(checkpoint("qwen3_vl"), load={"dtype": "float32"}, generation={"max_new_tokens": 4})
    engine = engine_for_chat(model)
    answer_of(engine, request_of(model, "hello"))
    assert engine.token_limit(request_of(model, "hello")) is None, "it runs alone, by model.generate"
    picture_request = request_of(model, [{"role": "user", "content": [_image(0), _text("say it")]}])
    assert len(answer_of(engine, picture_request)) > 1
    assert engine.token_limit(picture_request) is not None, "it is packed"


def test_beams_and_images_do_not_go_together(loaded: Callable[[str], llmctl.Model]) -> None:
    with pytest.raises(UserError, match="cannot have images"):
        loaded("qwen3_vl").generate("say it", images=[picture(0)], num_beams=2)


def test_an_image_that_its_tower_refuses_is_the_error_of_its_request_alone(
    loaded: Callable[[str], llmctl.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("qwen3_vl")

    def refuse(*_: Any) -> Any:
        raise UserError("images of this model need cross-attention")

    monkeypatch.setattr(image_encoder(model), "shape", refuse)
    requests = [
        request_of(model, "hello"),
        request_of(model, [{"role": "user", "content": [_image(5), _text("say it")]}]),
    ]
    results = dict(engine_for_many(model).run(enumerate(requests)))
    assert isinstance(results[1], UserError)
    assert len(results[0].token_ids) > 1  # type: ignore[union-attr]
