"""Scores of texts equal those of a plain transformers loop, in any portions and windows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation import scoring, sequence_logprobs

Tiny = Callable[[str], Path]
TEXT = "the capital of france is paris . once upon a time there was a café ☃ . " * 2
RAW = ChatSection(raw=True)


def load_tiny(folder: Path, **load: Any) -> llmctl.LoadedModel:
    return llmctl.load(folder, load={"dtype": "float32", **load})


def plain(loaded: llmctl.LoadedModel, ids: list[int]) -> list[float]:
    """Return the log-probabilities of ids[1:] by one plain pass."""
    import torch

    with torch.no_grad():
        rows = loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [rows[n, token].item() for n, token in enumerate(ids[1:])]


def values(done: llmctl.Score) -> list[float]:
    return [scored.logprob for scored in done.logprobs]


def test_every_architecture_scores_like_a_plain_pass_even_in_portions(
    architecture: str, tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_tiny(tiny_models(architecture))
    ids = list(loaded.tokenizer(TEXT)["input_ids"])
    assert values(llmctl.score(loaded, TEXT)) == pytest.approx(plain(loaded, ids), abs=1e-4)
    sizes: list[int] = []
    monkeypatch.setattr(sequence_logprobs, "_PORTION_TOKENS", 16)
    hook = loaded.model.register_forward_hook(lambda _m, _a, output: sizes.append(output.logits.shape[1]))
    portions = values(llmctl.score(loaded, TEXT))
    hook.remove()
    assert portions == pytest.approx(plain(loaded, ids), abs=1e-4)
    assert len(sizes) >= 3
    assert max(sizes) <= 16, "never more logits at once than a portion"


def test_portions_of_logits_are_larger_on_a_gpu_with_memory_for_them() -> None:
    """A vocabulary of 128,256: 261 tokens are 128 MiB in float32."""
    gib, tokens = 2**30, sequence_logprobs.portion_tokens
    assert tokens(128_256, None) == 261
    assert tokens(128_256, (60 * gib, 80 * gib)) == 2048
    assert tokens(128_256, (7 * gib, 24 * gib)) == 1024
    assert tokens(128_256, (gib // 2, 24 * gib)) == 261, "a card that is nearly full"
    assert tokens(128_256, (7.5 * gib, 24 * gib)) == tokens(128_256, (6.5 * gib, 24 * gib)), "no small steps"
    assert tokens(32_000, None) == 1048
    assert tokens(500, (60 * gib, 80 * gib)) == 2048
    assert tokens(10**8, None) == 16


def test_memory_that_runs_out_during_a_score_is_a_machine_error(
    tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_tiny(tiny_models("llama"))

    def full(**_: Any) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(loaded.model, "forward", full)
    with pytest.raises(llmctl.MachineError, match="memory ran out while scoring with"):
        llmctl.score(loaded, TEXT)


def test_perplexity_is_the_exponential_of_the_mean_loss(tiny_models: Tiny) -> None:
    import torch

    loaded = load_tiny(tiny_models("llama"))
    ids = torch.tensor([loaded.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        loss = loaded.model(ids, labels=ids).loss
    assert llmctl.score(loaded, TEXT).perplexity == pytest.approx(loss.exp().item(), rel=1e-5)


def test_the_prompt_is_context_and_the_text_is_the_answer(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    answer = loaded.tokenizer("paris", add_special_tokens=False)["input_ids"]
    done = llmctl.score(loaded, "paris", prompt="hello")
    assert [scored.id for scored in done.logprobs] == answer
    assert values(done) == pytest.approx(plain(loaded, [*prompt, *answer])[len(prompt) - 1 :], abs=1e-4)
    assert done.context_token_count == len(prompt)


def test_a_raw_prompt_and_its_text_are_tokenised_together(tiny_models: Tiny) -> None:
    tokenizer = load_tiny(tiny_models("llama")).tokenizer
    whole = tokenizer("the france")["input_ids"]
    for prompt, text in (("the", " france"), ("the ", "france"), ("the fra", "nce")):
        encoded, start = scoring.encode_after(tokenizer, prompt, text, RAW)
        assert list(encoded.ids) == whole, "the ids are those of the whole text, wherever the border is"
        assert start == 1, "a token that reaches over the border belongs to the text"
    encoded, start = scoring.encode_after(tokenizer, "the the", " france", RAW)
    assert (list(encoded.ids), start) == (tokenizer("the the france")["input_ids"], 2)


def test_control_tokens_in_an_answer_stay_text(tiny_models: Tiny) -> None:
    tokenizer = load_tiny(tiny_models("llama")).tokenizer
    encoded, start = scoring.encode_after(tokenizer, "hello", "yes<|im_end|>", ChatSection())
    ids = list(encoded.ids)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids[start:]
    assert tokenizer.decode(ids[start:]) == "yes<|im_end|>"


def test_a_long_text_is_scored_in_windows_as_in_the_guide_on_perplexity(tiny_models: Tiny) -> None:
    import torch

    loaded = load_tiny(tiny_models("llama"))
    ids = list(loaded.tokenizer(TEXT)["input_ids"])
    window, stride = 24, 10
    expected: list[float] = []  # the loop of transformers' guide on perplexity of fixed-length models
    before = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        new = end - before
        with torch.no_grad():
            rows = loaded.model(torch.tensor([ids[begin:end]])).logits[0].float().log_softmax(-1)
        inner = ids[begin:end]
        expected += [rows[n - 1, inner[n]].item() for n in range(max(len(inner) - new, 1), len(inner))]
        before = end
        if end == len(ids):
            break
    done = llmctl.score(loaded, TEXT, window=window, stride=stride)
    assert values(done) == pytest.approx(expected, abs=1e-4)
    assert done.window_count > 3
    assert len(done.logprobs) == len(ids) - 1


def test_a_text_longer_than_the_context_is_scored_whole(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    done = llmctl.score(loaded, TEXT * 6)
    assert len(done.logprobs) > 256
    assert done.window_count > 1
    long_prompt = llmctl.score(loaded, "paris", prompt=TEXT * 6)
    assert len(long_prompt.logprobs) == len(loaded.tokenizer("paris")["input_ids"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_choices_score_as_they_do_alone(dtype: str, tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), dtype=dtype)
    seen: list[int] = []
    hook = loaded.model.register_forward_pre_hook(
        lambda _m, _a, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    ranked = llmctl.rank(loaded, "hello", ["paris", "rome", "four is the capital"])
    hook.remove()
    assert sum(seen) < 60, "the prompt once, each choice once"
    for choice in ranked:
        assert values(choice.score) == values(llmctl.score(loaded, choice.score.text, prompt="hello"))
    assert sum(choice.share for choice in ranked) == pytest.approx(1)
    totals = [choice.score.total for choice in ranked]
    assert totals == sorted(totals, reverse=True)
    by_byte = llmctl.rank(loaded, "hello", ["paris", "rome", "four is the capital"], by="byte")
    assert [c.score.per_byte for c in by_byte] == sorted((c.score.per_byte for c in ranked), reverse=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: llmctl.score(m, ""), "the text to score is empty"),
        (lambda m: llmctl.score(m, "a b", window=500), "at most the context, 256; it is 500"),
        (lambda m: llmctl.score(m, "a b", window=8, stride=8), "less than the window, 8; it is 8"),
        (lambda m: llmctl.rank(m, "a", ["b"]), "at least two choices, all different"),
        (lambda m: llmctl.rank(m, "a", ["b", "b"]), "at least two choices, all different"),
    ],
)
def test_invalid_scoring_arguments_are_refused(call: Callable[..., Any], message: str, tiny_models: Tiny) -> None:
    with pytest.raises(UserError, match=message):
        call(load_tiny(tiny_models("llama")))


def test_a_text_of_one_token_has_no_perplexity(tiny_models: Tiny) -> None:
    done = llmctl.score(load_tiny(tiny_models("llama")), "a")
    assert (done.logprobs, done.mean, done.perplexity) == ((), None, None)


@pytest.mark.smollm
def test_a_real_model_scores_a_paragraph_like_plain_transformers(smollm: Path) -> None:
    loaded = load_tiny(smollm)
    paragraph = (
        "Paris is the capital and largest city of France. It lies on the Seine, and about two million people live "
        "there. Its name comes from the Parisii, who lived on an island in the river more than 2,000 years ago."
    )
    ids = list(loaded.tokenizer(paragraph)["input_ids"])
    expected = plain(loaded, ids)
    done = llmctl.score(loaded, paragraph)
    assert values(done) == pytest.approx(expected, abs=1e-4)
    assert 1 < (done.perplexity or 0) < 30
    assert llmctl.rank(loaded, "What is the capital of France?", ["Rome", "Paris"])[0].score.text == "Paris"
