"""The chain that samples on a device, with tensors on the CPU: against transformers' warpers and the exact shares."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as processors

import llmctl
from llmctl.errors import UserError
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, EngineCapacity
from llmctl.generation.engine.candidate_sampler import split
from llmctl.generation.engine.next_tokens import Choice, next_tokens
from llmctl.generation.engine.packed import PackedRunner
from llmctl.generation.engine.sampler import Samplers
from llmctl.generation.overrides import with_generation
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, make_request
from llmctl.gpu import sampling
from llmctl.gpu.sampling import Warping, noise_key, sample_rows
from llmctl.loading.model import LoadedModel

T, K, P, M = (
    processors.TemperatureLogitsWarper,
    processors.TopKLogitsWarper,
    processors.TopPLogitsWarper,
    processors.MinPLogitsWarper,
)
SETTINGS = {
    "temperature": [T(0.7)],
    "top_k": [T(0.8), K(50)],
    "top_k_of_one": [K(1)],
    "top_k_and_top_p": [K(40), P(0.9)],
    "top_p": [T(1.3), P(0.95)],
    "a_small_top_p": [P(0.01)],
    "min_p": [M(0.05)],
    "all": [T(0.9), K(200), P(0.98), M(0.01)],
    "top_k_of_more_than_there_are": [K(100_000)],
}
ROOMY, CROWDED = EngineCapacity(64, 512, 4096), EngineCapacity(8, 40, 400)


def warping_of(name: str) -> Warping:
    return Warping.of(split(SETTINGS[name])[1])


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_tokens_that_can_be_chosen_are_those_of_transformers(name: str, spread: float) -> None:
    logits = spread * torch.randn(6, 5000, generator=torch.Generator().manual_seed(1))
    warping = warping_of(name)
    count = sampling._candidates(warping, 5000)
    settings = sampling._settings([warping] * 6, [(0, 0)] * 6, range(6), logits.device)
    kept, ids = sampling.warp(logits, settings, count)
    whole = torch.full_like(logits, -torch.inf).scatter(1, ids.expand_as(kept), kept)
    expected = LogitsProcessorList(SETTINGS[name])(torch.zeros(6, 1, dtype=torch.long), logits.clone())
    assert torch.equal(whole.isfinite(), expected.isfinite())
    assert torch.allclose(whole.softmax(-1), expected.softmax(-1), atol=1e-6)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "all"])
def test_tokens_are_drawn_in_proportion_to_their_probabilities(name: str) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(2)) * 2
    draws = 20_000
    keys = [noise_key(seed, position) for seed in range(100) for position in range(draws // 100)]
    tokens = sample_rows(logits.expand(draws, -1), [warping_of(name)] * draws, keys)
    scores = LogitsProcessorList(SETTINGS[name])(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())
    shares, counts = scores.softmax(-1)[0], torch.bincount(tokens, minlength=300)
    assert not counts[shares == 0].any()
    expected = shares * draws
    often = expected >= 5
    chi_square = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    freedom = int(often.sum())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_noise_differs_between_seeds_positions_and_tokens() -> None:
    keys = [noise_key(seed, position) for seed in (0, 1, 2**32 - 1, 2**40) for position in range(500)]
    assert len(set(keys)) == len(keys)
    noise = sampling._gumbel(torch.arange(2000)[None], torch.tensor(keys))
    assert noise.isfinite().all()
    assert abs(float(noise.mean()) - 0.5772) < 0.01  # Euler's constant
    assert abs(float(noise.var()) - 1.6449) < 0.02
    correlation = torch.corrcoef(noise[:60])
    assert float((correlation - torch.eye(60)).abs().max()) < 0.12


def test_a_row_gets_the_same_token_beside_any_other_rows() -> None:
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(3)) * 3
    warpings = [warping_of(random.Random(n).choice(list(SETTINGS))) for n in range(40)]
    keys = [noise_key(n, 7) for n in range(40)]
    together = sample_rows(logits, warpings, keys).tolist()
    alone = [int(sample_rows(logits[n : n + 1], warpings[n : n + 1], keys[n : n + 1])) for n in range(40)]
    order = random.Random(5).sample(range(40), 40)
    shuffled = sample_rows(logits[order], [warpings[n] for n in order], [keys[n] for n in order]).tolist()
    assert together == alone
    assert [together[n] for n in order] == shuffled


# -- the engine


def engine_of(loaded: LoadedModel, capacity: EngineCapacity = ROOMY) -> Engine:
    """Return an engine that chooses tokens as on a GPU."""
    engine = Engine(loaded, capacity)
    engine._packed = PackedRunner(loaded, capacity, samples_on_device=True)
    return engine


def requests_for(loaded: LoadedModel, count: int) -> list[Request]:
    chance = random.Random(1)
    prompts = [[chance.randrange(5, 300) for _ in range(chance.randrange(1, 70))] for _ in range(count)]
    return [make_request(loaded, Prompt(tuple(ids)), seed=100 + number) for number, ids in enumerate(prompts)]


def answers(engine: Engine, requests: list[Request]) -> list[Completion]:
    found = dict(engine.run(enumerate(requests)))
    return [found[number] for number in range(len(requests))]


@pytest.fixture(scope="module")
def model(tiny_models: Callable[[str], Path]) -> LoadedModel:
    return llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation={"max_new_tokens": 24})


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3}])
def test_greedy_answers_equal_those_of_the_cpu(model: LoadedModel, settings: dict[str, object]) -> None:
    requests = requests_for(with_generation(model, settings), 8)
    expected = [one.token_ids for one in answers(Engine(model, ROOMY), requests)]
    assert [one.token_ids for one in answers(engine_of(model), requests)] == expected


def test_a_sampled_answer_depends_only_on_its_seed(model: LoadedModel) -> None:
    settings = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2}
    requests = requests_for(with_generation(model, settings), 12)
    together = [one.token_ids for one in answers(engine_of(model), requests)]
    crowded = [one.token_ids for one in answers(engine_of(model, CROWDED), requests)]
    alone = [answers(engine_of(model), [one])[0].token_ids for one in requests]
    assert together == crowded == alone
    same = [make_request(with_generation(model, settings), requests[3].prompt, seed=seed) for seed in range(12)]
    assert len({one.token_ids for one in answers(engine_of(model), same)}) == 12


def test_structures_are_enforced_in_one_pass_with_other_sequences(model: LoadedModel) -> None:
    hot = {"temperature": 1.5, "max_new_tokens": 60}
    schema = {"type": "array", "items": {"enum": [1, 20]}, "minItems": 3, "maxItems": 3}
    structures = ({"choices": ["yes", "no"]}, {"json_schema": schema}, {}, {"regex": "[a-c]{4}"})
    asked = [
        with_generation(model, {**hot, **more}, structure=structure)
        for structure in structures
        for more in ({}, {"repetition_penalty": 1.1})
    ]
    requests = [make_request(loaded, Prompt((7, 8, 9)), seed=n) for n, loaded in enumerate(asked)]
    texts = [one.text for one in answers(engine_of(model), requests)]
    for n in (0, 1):
        assert texts[n] in ("yes", "no")
        assert len(json.loads(texts[2 + n])) == 3
        assert re.fullmatch("[a-c]{4}", texts[6 + n])


def test_a_structure_that_becomes_too_complex_affects_no_other_sequence(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmctl.generation.structured.constraint import StructureProcessor

    def fail(*_: object) -> None:
        raise UserError("planted")

    monkeypatch.setattr(StructureProcessor, "_follow", fail)
    structured = make_request(with_generation(model, {}, structure={"regex": "a+"}), Prompt((7, 8)))
    found = dict(engine_of(model).run([(0, structured), (1, make_request(model, Prompt((7, 8))))]))
    assert isinstance(found[0], UserError)
    assert isinstance(found[1], Completion)


def test_log_probabilities_equal_those_of_the_cpu(model: LoadedModel) -> None:
    asked = [with_generation(model, {"max_new_tokens": 8, "logprobs": n}) for n in (0, 2, 5)]
    requests = [make_request(loaded, Prompt((7, 8, 9 + n)), seed=n) for n, loaded in enumerate(asked)]
    requests.append(make_request(model, Prompt((5, 6))))
    for ours, theirs in zip(answers(engine_of(model), requests), answers(Engine(model, ROOMY), requests), strict=True):
        assert (ours.logprobs is None) == (theirs.logprobs is None)
        for one, other in zip(ours.logprobs or (), theirs.logprobs or (), strict=True):
            assert (one.id, [top.id for top in one.top]) == (other.id, [top.id for top in other.top])
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_a_pass_waits_once_for_the_tokens_of_all_sequences(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name below makes Python wait for a GPU."""
    asked = [with_generation(model, settings) for settings in ({"temperature": 0.8, "top_k": 40}, {"temperature": 2.0})]
    choices = [
        Choice(Samplers(model.model, on_cpu=False).make(make_request(asked[n % 2], Prompt((5, 6)), seed=n)), [5, 6], n)
        for n in range(6)
    ]
    waits = Counter[str]()

    def counting(name: str, kept: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            waits[name] += 1
            return kept(*arguments)

        return counted

    for name in ("tolist", "item", "__int__", "__bool__", "__float__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
    assert len(next_tokens(torch.randn(6, 400), choices, together=True)) == 6
    assert waits == Counter({"tolist": 1})
