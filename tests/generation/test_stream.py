"""Generating: the text of plain transformers, repeatable, stoppable, with the right reason of its end."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.errors import UserError
from llmctl.generation.overrides import with_generation
from llmctl.generation.stream import generate_many

Tiny = Callable[[str], Path]
PROMPT = "the capital of france"


def load_tiny(folder: Path, *, kernels: bool = True, **generation: Any) -> llmctl.LoadedModel:
    load = {"dtype": "float32", "cpu_kernels": kernels}
    return llmctl.load(folder, generation={"max_new_tokens": 12, **generation}, load=load)


def plain(loaded: llmctl.LoadedModel, prompt: str, count: int) -> list[int]:
    """Return the greedy answer of transformers' own generate."""
    import torch

    from llmctl.config import ChatSection
    from llmctl.generation.prompt import encode_prompt

    ids = torch.tensor([encode_prompt(loaded.tokenizer, prompt, ChatSection()).ids])
    output = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=list(loaded.eos_token_ids),
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    return [int(token) for token in output[0, ids.shape[1] :]]


def test_every_architecture_gives_the_text_of_plain_transformers(architecture: str, tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models(architecture))
    done = llmctl.generate(loaded, PROMPT)
    assert list(done.token_ids) == plain(loaded, PROMPT, 12)
    ends = done.token_ids[-1] in loaded.eos_token_ids
    assert done.text == loaded.tokenizer.decode(done.token_ids, skip_special_tokens=True)
    assert done.finish_reason == ("stop" if ends else "length")


def test_the_streamed_pieces_are_the_text(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    chunks = list(llmctl.stream(loaded, PROMPT))
    assert [chunk.completion is not None for chunk in chunks].count(True) == 1
    assert chunks[-1].completion is not None
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].completion.text
    assert len(chunks) > 2


def test_equal_seeds_give_equal_text_and_different_seeds_different_text(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), temperature=1.5)
    first, again, other = (llmctl.generate(loaded, PROMPT, seed=seed).text for seed in (7, 7, 8))
    assert first == again != other


def test_each_of_several_answers_can_be_repeated_alone(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), temperature=1.5)
    answers = generate_many(loaded, PROMPT, count=3)
    first, second, third = (next(c.completion for c in chunks if c.completion) for chunks in answers)
    assert len({first.text, second.text, third.text}) == 3
    assert (second.seed, third.seed) == ((first.seed + 1) % 2**32, (first.seed + 2) % 2**32)
    assert llmctl.generate(loaded, PROMPT, seed=third.seed).text == third.text


def test_without_a_seed_each_answer_differs_and_can_be_repeated(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), temperature=1.5)
    answers = [llmctl.generate(loaded, PROMPT) for _ in range(3)]
    assert len({answer.text for answer in answers}) == len({answer.seed for answer in answers}) == 3
    assert [llmctl.generate(loaded, PROMPT, seed=one.seed).text for one in answers] == [one.text for one in answers]
    seeded = with_generation(loaded, {}, seed=7)
    assert {llmctl.generate(seeded, PROMPT).seed for _ in range(2)} == {7}


def test_without_sampling_there_is_no_seed_to_draw(tiny_models: Tiny) -> None:
    assert {llmctl.generate(load_tiny(tiny_models("llama")), PROMPT).seed for _ in range(2)} == {0}


def test_several_answers_without_sampling_are_refused(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    with pytest.raises(UserError, match="all 3 answers would be the same"):
        list(generate_many(loaded, PROMPT, count=3))


def test_a_stop_string_ends_the_answer_before_it(tiny_models: Tiny) -> None:
    whole = llmctl.generate(load_tiny(tiny_models("llama")), PROMPT).text
    stop = whole[3:6]
    done = llmctl.generate(load_tiny(tiny_models("llama"), stop_strings=[stop]), PROMPT)
    assert done.text == whole[: whole.index(stop)]
    assert (done.finish_reason, done.stop_string) == ("stop_string", stop)
    assert len(done.token_ids) < 12, "it stops at once, not at the length"


def test_an_extra_end_token_ends_the_answer(tiny_models: Tiny) -> None:
    ids = llmctl.generate(load_tiny(tiny_models("llama")), PROMPT).token_ids
    done = llmctl.generate(load_tiny(tiny_models("llama"), extra_eos_tokens=[ids[4]]), PROMPT)
    assert done.finish_reason == "stop"
    assert done.token_ids == ids[: ids.index(ids[4]) + 1]


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    with pytest.raises(UserError, match=r"the prompt has \d{3,} tokens, the context of .* holds 256"):
        llmctl.generate(loaded, "word " * 400)


def test_the_answer_ends_when_the_context_is_full(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    prompt = "a" * 235
    done = llmctl.generate(loaded, prompt, max_new_tokens=500)
    assert done.prompt_token_count + len(done.token_ids) == 256
    assert (done.finish_reason, done.length_limit) == ("length", "context")
    cut = llmctl.generate(loaded, prompt, max_new_tokens=2)
    assert (cut.finish_reason, cut.length_limit) == ("length", "max_new_tokens")


@pytest.mark.parametrize("text", ["once upon a time, in 1987. ", "x"], ids=["words", "one word"])
def test_ten_megabytes_are_refused_at_once_with_both_lengths(text: str, tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    began = time.process_time()
    with pytest.raises(UserError, match=r"the prompt has about \d{7,8} tokens, the context of .* holds 256") as error:
        llmctl.generate(loaded, text * (10_000_000 // len(text)))
    assert error.value.details["context_length"] == 256
    assert time.process_time() - began < 2


def test_closing_the_iterator_stops_the_model(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    chunks = llmctl.stream(loaded, PROMPT, max_new_tokens=200)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined] # it is a generator
    assert not any(thread.name == "llmctl-generate" for thread in threading.enumerate())


def test_an_error_in_the_model_reaches_the_caller(tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_tiny(tiny_models("llama"), kernels=False)

    def fail(**_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(RuntimeError, match="planted"):
        llmctl.generate(loaded, PROMPT)


def test_running_out_of_memory_is_a_machine_error(tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    loaded = load_tiny(tiny_models("llama"), kernels=False)

    def fail(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(llmctl.MachineError, match=r"memory ran out while generating .*: planned [0-9]+ MB \(weights"):
        llmctl.generate(loaded, PROMPT)


def test_beam_search_gives_the_text_of_plain_transformers(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), num_beams=3)
    done = llmctl.generate(loaded, PROMPT)
    assert done.token_ids
    assert done.text == loaded.tokenizer.decode(done.token_ids, skip_special_tokens=True)
    assert list(done.token_ids) != plain(loaded, PROMPT, 12), "three beams find another text than greedy here"


def test_timings_are_of_this_call(tiny_models: Tiny) -> None:
    done = llmctl.generate(load_tiny(tiny_models("llama")), PROMPT)
    assert 0 < done.first_token_seconds <= done.seconds
    assert done.tokens_per_second is None or done.tokens_per_second > 0
