"""Log-probabilities of generated tokens in the model's own distribution, however the token was chosen."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.generation.logprobs import RawLogits, logprob_document, logprob_line, token_logprob, token_text
from llmctl.generation.prompt import encode_prompt

Tiny = Callable[[str], Path]
PROMPT = "the capital of france"
# everything that changes logits before a token is taken from them
CHANGED: dict[str, Any] = {"temperature": 1.7, "top_p": 0.9, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2}


def load_tiny(folder: Path, **generation: Any) -> llmctl.LoadedModel:
    return llmctl.load(folder, generation={"max_new_tokens": 12, **generation}, load={"dtype": "float32"})


def raw_logprobs(loaded: llmctl.LoadedModel, ids: list[int]) -> Any:
    """Return the log-softmax of plain logits, of shape [L, V]: row n is about token n + 1."""
    import torch

    with torch.no_grad():
        return loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [{}, CHANGED, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "penalties", "beams", "lookup"],
)
def test_each_token_has_the_log_probability_of_the_raw_logits(settings: dict[str, Any], tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), logprobs=3, **settings)
    done = llmctl.generate(loaded, PROMPT)
    prompt = list(encode_prompt(loaded.tokenizer, PROMPT, loaded.config.chat).ids)
    rows = raw_logprobs(loaded, [*prompt, *done.token_ids])[len(prompt) - 1 :]
    assert done.logprobs is not None
    assert [scored.id for scored in done.logprobs] == list(done.token_ids)
    for row, scored in zip(rows, done.logprobs, strict=False):
        assert scored.logprob == pytest.approx(row[scored.id].item(), abs=1e-4)
        assert [one.id for one in scored.top] == row.topk(3).indices.tolist()
        assert scored.top[0].logprob == pytest.approx(row.max().item(), abs=1e-4)


def test_requesting_log_probabilities_changes_no_token(tiny_models: Tiny) -> None:
    folder = tiny_models("llama")
    plain, noted = (llmctl.generate(load_tiny(folder, **CHANGED, logprobs=n), PROMPT, seed=42) for n in (None, 2))
    assert plain.token_ids == noted.token_ids
    assert plain.logprobs is None


def test_zero_alternatives_records_only_the_chosen_token_and_removes_the_hook(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), logprobs=0)
    done = llmctl.generate(loaded, PROMPT)
    assert done.logprobs is not None
    assert all(scored.top == () for scored in done.logprobs)
    assert not loaded.model._forward_hooks


def test_after_a_prefill_the_last_row_is_used_once(tiny_models: Tiny) -> None:
    import torch

    loaded = load_tiny(tiny_models("llama"))
    with RawLogits(loaded.model) as raw, torch.no_grad():
        logits = loaded.model(torch.tensor([[5, 6, 7]])).logits
        assert raw.logprob(9, 2) == token_logprob(logits[0, -1], 9, 2)
        with pytest.raises(AssertionError, match="a forward pass of its own"):
            raw.logprob(9, 2)


def test_forward_passes_of_other_threads_are_ignored(tiny_models: Tiny) -> None:
    import torch

    loaded = load_tiny(tiny_models("llama"))

    def score() -> None:
        with torch.no_grad():
            loaded.model(torch.tensor([[9, 8]]))

    with RawLogits(loaded.model) as raw, torch.no_grad():
        logits = loaded.model(torch.tensor([[5, 6, 7]])).logits
        other = threading.Thread(target=score)
        other.start()
        other.join()
        assert raw.logprob(9, 0) == token_logprob(logits[0, -1], 9, 0)


def test_more_alternatives_than_tokens_returns_the_whole_vocabulary() -> None:
    import torch

    scored = token_logprob(torch.tensor([0.0, float("-inf"), 1.0], dtype=torch.bfloat16), 1, 100)
    assert [one.id for one in scored.top] == [2, 0, 1]
    assert scored.top[0].logprob == pytest.approx(-0.3133, abs=1e-4)
    assert scored.logprob == float("-inf")


def test_an_incomplete_character_is_bytes_and_minus_infinity_is_null(tiny_models: Tiny) -> None:
    import torch

    loaded = load_tiny(tiny_models("llama"))
    ids = loaded.tokenizer("☃")["input_ids"]
    texts = [token_text(loaded.tokenizer, token) for token in ids]
    assert len(ids) > 1
    assert bytes(byte for text in texts for byte in text["bytes"]) == "☃".encode()
    assert token_text(loaded.tokenizer, loaded.tokenizer(" the")["input_ids"][0]) == {"token": " the"}
    logits = torch.zeros(400)
    logits[5] = float("-inf")
    assert logprob_document(token_logprob(logits, 5, 0), loaded.tokenizer)["logprob"] is None


def test_a_text_line_shows_percentages(tiny_models: Tiny) -> None:
    import torch

    loaded = load_tiny(tiny_models("llama"))
    the, of = (loaded.tokenizer(word)["input_ids"][0] for word in (" the", " of"))
    logits = torch.full((400,), float("-inf"))
    logits[the], logits[of] = 0.0, -1.0986
    assert (
        logprob_line(token_logprob(logits, of, 2), loaded.tokenizer)
        == "  -1.3863     25%  ' of'   of ' the' 75%, ' of' 25%"
    )
