"""The library in Python: settings as keyword arguments, lists of prompts, conversations, async variants, closing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.generation.pieces import TextDelta

PROMPT = "the capital of france is"


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> llmctl.Model:
    return llmctl.load(tiny_folder, load={"dtype": "float32"}, generation={"max_new_tokens": 8})


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny import write_model

    return write_model(tmp_path_factory.mktemp("api") / "llama")


def test_settings_hold_for_one_call(model: llmctl.Model) -> None:
    first, again = (model.generate(PROMPT, temperature=1.5, seed=7, max_tokens=5) for _ in range(2))
    assert first.text == again.text
    assert (first.seed, len(first.token_ids) <= 5) == (7, True)
    assert llmctl.generate(model, PROMPT, temperature=1.5, seed=7, max_new_tokens=5).text == first.text
    assert model.config.generation.temperature is None
    assert model.generate(PROMPT).seed == 0


def test_system_stop_and_structure_are_keywords(model: llmctl.Model) -> None:
    assert model.generate(PROMPT, system="be kind").prompt_token_count > model.generate(PROMPT).prompt_token_count
    assert model.generate(PROMPT, choices=["yes", "no"]).text in ("yes", "no")
    text = model.generate(PROMPT).text
    assert model.generate(PROMPT, stop=text[2]).text == text.partition(text[2])[0]
    assert model.generate(PROMPT, raw=True).prompt_token_count < model.generate(PROMPT).prompt_token_count


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperatur": 1}, "temperature"),
        ({"max_new_token": 1}, "max_new_tokens"),
        ({"sytem": "x"}, "system"),
        ({"temperature": -1}, "generation.temperature"),
        ({"json_schema": {"type": "strng"}}, "structure.json_schema"),
        ({"regex": "a", "choices": ["a"]}, "structure"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_right_one(settings: Any, said: str, model: llmctl.Model) -> None:
    with pytest.raises(llmctl.UserError) as error:
        model.generate(PROMPT, **settings)
    assert said in str(error.value)
    with pytest.raises(llmctl.UserError):
        model.chat(**settings).send(PROMPT)


def test_a_list_of_prompts_is_answered_together(model: llmctl.Model) -> None:
    prompts = [PROMPT, [{"role": "user", "content": "once upon"}], "of"]
    many = model.generate(prompts)
    assert [answer.text for answer in many] == [model.generate(prompt).text for prompt in prompts]  # type: ignore[arg-type]
    assert model.generate([]) == []
    with pytest.raises(llmctl.UserError):
        model.generate([PROMPT, "word " * 5000])
    rows = list(llmctl.generate_batch(model, [PROMPT, "word " * 5000], max_new_tokens=3))
    assert len(rows[0].completion.token_ids) <= 3  # type: ignore[union-attr]
    assert rows[1].error is not None


def test_async_variants_give_the_same(model: llmctl.Model) -> None:
    async def run() -> tuple[list[str], str]:
        whole = await asyncio.gather(*(model.agenerate(PROMPT) for _ in range(3)))
        pieces = [chunk.text async for chunk in model.astream(PROMPT)]
        async for _ in model.astream(PROMPT, max_new_tokens=200):
            break
        return [answer.text for answer in whole], "".join(pieces)

    whole, streamed = asyncio.run(run())
    assert {*whole, streamed} == {model.generate(PROMPT).text}


def test_a_conversation_is_sent_streamed_undone_and_read(model: llmctl.Model) -> None:
    chat = model.chat(system="be kind", max_new_tokens=6)
    first = chat.send("the capital of france")
    assert str(first) == first.text == chat.messages[-1].content
    second = "".join(piece.text for piece in chat.stream("of italy") if isinstance(piece, TextDelta))
    assert [message["role"] for message in chat.history] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.history[-1]["content"] == second
    assert chat.undo() == "of italy"
    assert len(chat.history) == 3


def test_representations_are_short_and_answers_print_as_their_text(model: llmctl.Model) -> None:
    answer = model.generate(PROMPT)
    chunk = next(iter(model.stream(PROMPT)))
    assert str(answer) == answer.text
    assert str(chunk) == chunk.text
    assert all(len(repr(thing)) < 250 for thing in (answer, chunk, model))
    assert "llama" in repr(model)


@pytest.mark.parametrize(("value", "bits"), [("4bit", 4), ("8bit", 8), (4, 4), ("none", None)])
def test_quantization_can_be_a_word(value: Any, bits: int | None, tiny_folder: Path) -> None:
    with llmctl.load(tiny_folder, quantization=value) as model:
        assert model.config.quantization.bits == bits
        assert model.generate(PROMPT, max_new_tokens=2).text is not None


def test_a_closed_model_frees_its_weights_and_says_so(tiny_folder: Path) -> None:
    import weakref

    with llmctl.load(tiny_folder) as model:
        weights = weakref.ref(model.model)
        model.generate(PROMPT)
    assert weights() is None
    with pytest.raises(llmctl.UserError, match="closed"):
        model.generate(PROMPT)
