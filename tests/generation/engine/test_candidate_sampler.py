"""Sampling among few candidates chooses the same tokens as sampling over the whole vocabulary."""

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as processors

from llmctl.generation.engine.candidate_sampler import split
from llmctl.generation.engine.sampler import Sampler

T, K, P, M = (
    processors.TemperatureLogitsWarper,
    processors.TopKLogitsWarper,
    processors.TopPLogitsWarper,
    processors.MinPLogitsWarper,
)
WAYS = {
    "temperature": [T(0.7)],
    "top_k": [T(0.8), K(50)],
    "top_k_and_top_p": [K(40), P(0.9)],
    "top_p": [T(1.3), P(0.95)],
    "top_p_of_nearly_all": [P(0.9999)],
    "a_small_top_p": [P(0.01)],
    "min_p": [M(0.05)],
    "all": [T(0.9), K(200), P(0.98), M(0.01)],
    "after_a_penalty": [processors.RepetitionPenaltyLogitsProcessor(1.3), T(0.8), K(20)],
}


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_seed_chooses_the_same_token_as_in_transformers(way: str, spread: float) -> None:
    vocabulary, seed = 5000, 11
    sampler = Sampler(seed, LogitsProcessorList(WAYS[way]), samples=True, on_cpu=True)
    reference = torch.Generator().manual_seed(seed)
    numbers = torch.Generator().manual_seed(1)
    ids = [1, 2, 3]
    for _ in range(150):
        logits = spread * torch.randn(vocabulary, generator=numbers)
        scores = LogitsProcessorList(WAYS[way])(torch.tensor([ids]), logits[None].clone())
        expected = int(torch.multinomial(torch.softmax(scores, -1), 1, generator=reference))
        assert sampler.sample(ids, logits) == expected
        ids.append(expected)


def test_tokens_that_a_structure_forbids_are_never_chosen() -> None:
    logits = torch.full((100,), float("-inf"))
    logits[[7, 9]] = 1.0
    sampler = Sampler(3, LogitsProcessorList([K(50), P(0.9)]), samples=True, on_cpu=True)
    assert {sampler.sample([1], logits) for _ in range(200)} == {7, 9}


def test_unknown_processors_are_left_to_transformers() -> None:
    typical = processors.TypicalLogitsWarper(0.9)
    temperature, kept = T(0.5), K(5)
    assert split([kept, typical, temperature]) == ([kept, typical], [temperature])
    several = P(0.9, min_tokens_to_keep=2)
    assert split([several, temperature]) == ([several], [temperature])
