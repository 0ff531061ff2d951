"""Models that keep more than keys and values are packed, and continue from checkpoints of their recurrent states."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import llmctl
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, EngineCapacity
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.generation.engine.packable import why_not_packed
from llmctl.generation.engine.state_checkpoints import StateCheckpoints, checkpoint_positions
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, make_request
from llmctl.generation.stream import stream_request
from llmctl.loading.attention_mask import UnknownMask, UnsupportedAttentionError, VisibleTokens, visible_tokens
from llmctl.loading.model import LoadedModel
from llmctl.plan.cache_memory import kv_cache_bytes, state_bytes
from support.tiny import write_model

ROOMY, CROWDED = EngineCapacity(64, 512, 4096), EngineCapacity(3, 40, 600)
SETTINGS = {"load": {"dtype": "float32"}, "generation": {"max_new_tokens": 12}}
HYBRID = ["qwen3_5", "lfm2"]


@pytest.fixture
def load(tiny_models: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    return lambda architecture: llmctl.load(tiny_models(architecture), **SETTINGS)


def ids(count: int, *, seed: int = 0) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(5, 300) for _ in range(count)]


def request(loaded: LoadedModel, prompt: list[int]) -> Request:
    return make_request(loaded, Prompt(tuple(prompt)), seed=1)


def alone(loaded: LoadedModel, one: Request) -> tuple[int, ...]:
    return next(c.completion.token_ids for c in stream_request(loaded, one) if c.completion is not None)


def answer(engine: Engine, prompt: list[int]) -> tuple[tuple[int, ...], int]:
    """The tokens of an answer, and the number of prompt tokens that were computed for it."""
    before = engine.prefilled_tokens
    ((_, completion),) = engine.run([(0, request(engine.loaded, prompt))])
    assert isinstance(completion, Completion)
    return completion.token_ids, engine.prefilled_tokens - before


@pytest.mark.parametrize("size", [ROOMY, CROWDED], ids=["roomy", "crowded"])
@pytest.mark.parametrize(
    "architecture", ["qwen3_5", "lfm2", "mamba", "llama4", "gpt_oss", "deepseek_v3", "bart", "roberta"]
)
def test_packed_answers_equal_those_of_transformers(
    load: Callable[[str], LoadedModel], architecture: str, size: EngineCapacity
) -> None:
    loaded = load(architecture)
    assert why_not_packed(loaded) is None
    shared = ids(70)
    prompts = [shared + ids(9), ids(3, seed=1), ids(100, seed=2), shared[:50] + ids(5, seed=3), [7], shared + ids(9)]
    engine = Engine(loaded, size)
    packed = dict(engine.run((number, request(loaded, prompt)) for number, prompt in enumerate(prompts)))
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            expected = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        assert list(packed[number].token_ids) == expected[len(prompt) :]


@pytest.mark.parametrize("architecture", HYBRID)
def test_the_next_turn_computes_only_its_new_tokens(load: Callable[[str], LoadedModel], architecture: str) -> None:
    loaded = load(architecture)
    engine = Engine(loaded, ROOMY, single=True)
    first, second = ids(60), ids(20, seed=1)
    reply, prefilled = answer(engine, first)
    assert prefilled == 60
    longer = [*first, *reply, *second]
    found, prefilled = answer(engine, longer)
    assert prefilled == 1 + len(second)  # the last token of the reply was never computed
    assert found == alone(loaded, request(loaded, longer))


@pytest.mark.parametrize("architecture", HYBRID)
def test_a_repeated_and_an_edited_turn_continue_from_a_checkpoint(
    load: Callable[[str], LoadedModel], architecture: str
) -> None:
    loaded = load(architecture)
    engine = Engine(loaded, ROOMY, single=True)
    end = min(request(loaded, [5]).eos_token_ids)
    history, question, other = [*ids(40), end], [*ids(30, seed=1), end, 9, 10], [*ids(25, seed=2), end, 9, 10]
    reply, prefilled = answer(engine, history + question)
    assert prefilled == len(history + question)
    again, prefilled = answer(engine, history + question)
    assert (again, prefilled) == (reply, 2)
    edited, prefilled = answer(engine, history + other)
    assert prefilled == len(other)
    assert edited == alone(loaded, request(loaded, history + other))


def test_a_text_that_differs_before_every_checkpoint_is_computed_from_the_beginning(
    load: Callable[[str], LoadedModel],
) -> None:
    loaded = load("qwen3_5")
    engine = Engine(loaded, ROOMY, single=True)
    prompt = ids(60)
    answer(engine, prompt)
    changed = [*prompt[:30], 299, *prompt[31:]]
    found, prefilled = answer(engine, changed)
    assert prefilled == len(changed)
    assert found == alone(loaded, request(loaded, changed))


def test_checkpoints_replace_the_least_recently_used() -> None:
    checkpoints = StateCheckpoints([4, 5])
    assert checkpoints.keep([1, 2]) == 5
    assert checkpoints.keep([1, 2, 3]) == 4
    assert checkpoints.keep([1, 2]) is None  # it is kept already, and was used just now
    assert checkpoints.keep([8]) == 4
    assert [(c.tokens, c.slot) for c in checkpoints.find([1, 2, 3, 4])] == [(2, 5)]
    assert not list(checkpoints.find([1, 2, 3, 4], salt=b"picture"))


def test_a_prompt_is_kept_after_its_last_two_messages() -> None:
    assert checkpoint_positions([5, 0, 6, 0, 7, 0, 8], {0}) == (4, 6)
    assert checkpoint_positions([5, 6, 7], {0}) == (2,)
    assert checkpoint_positions([5], {0}) == ()


def test_a_mask_is_recognised_by_what_it_hides() -> None:
    from transformers import masking_utils

    zero = torch.zeros(1, dtype=torch.int64)
    sliding = masking_utils.sliding_window_causal_mask_function(24)
    chunked = masking_utils.chunked_causal_mask_function(24, zero)
    assert visible_tokens(mask_function=masking_utils.causal_mask_function) == VisibleTokens()
    assert visible_tokens(mask_function=sliding, local_size=24) == VisibleTokens(window=24)
    assert visible_tokens(mask_function=chunked, local_size=24) == VisibleTokens(chunk=24)
    for unknown in (masking_utils.bidirectional_mask_function, masking_utils.blockwise_overlay(zero[None])):
        assert isinstance(visible_tokens(mask_function=unknown), UnknownMask)


def test_a_mask_or_an_argument_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", dtype="float32")
    loaded = llmctl.load(folder, load={"dtype": "float32", "cpu_kernels": False})
    layout, attention = lay_out([Segment([5, 6], 0, [0])], page_tokens=16), loaded.model.model.layers[1].self_attn
    original = attention.forward
    for unknown in ({"attention_mask": torch.ones(1, 1, 2, 2, dtype=torch.bool)}, {"position_bias": torch.zeros(1)}):
        attention.forward = lambda *a, unknown=unknown, **k: original(*a, **{**k, **unknown})
        with pytest.raises(UnsupportedAttentionError):
            forward(loaded.model, layout, CachePool(1, 16))
        assert why_not_packed(loaded) is not None


@pytest.mark.parametrize("architecture", ["qwen3_5", "mamba"])
def test_the_planned_size_of_a_recurrent_state_is_that_of_the_engine(
    load: Callable[[str], LoadedModel], architecture: str
) -> None:
    loaded = load(architecture)
    pool = CachePool(1, 16, slots=1)
    forward(loaded.model, lay_out([Segment([5, 6, 7], 0, [0])], page_tokens=16), pool)
    # a program keeps one input less of a convolution than transformers, which counts in a model so small
    assert pool.state_bytes(0) == pytest.approx(state_bytes(loaded.info, dtype="float32"), rel=0.1)


def test_only_layers_with_attention_count_for_the_kv_cache(load: Callable[[str], LoadedModel]) -> None:
    info = load("qwen3_5").info  # two layers, of which one has attention: 2 heads of 16
    assert kv_cache_bytes(info, context=100, dtype="bfloat16") == 2 * 100 * 2 * 16 * 2


@pytest.mark.parametrize("single", [False, True], ids=["batch", "single"])
@pytest.mark.parametrize("architecture", ["phi3_long", "phimoe_long"])
def test_sequences_around_the_switch_of_a_longrope_equal_those_of_transformers(
    load: Callable[[str], LoadedModel], architecture: str, single: bool
) -> None:
    loaded = load(architecture)
    prompts = [ids(35), ids(60, seed=1), ids(10, seed=2), ids(40, seed=3), ids(60, seed=1)[:35]]  # the switch is at 40
    engine = Engine(loaded, EngineCapacity(8, 24, 2000), single=single)
    packed = dict(engine.run((number, request(loaded, prompt)) for number, prompt in enumerate(prompts)))
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            expected = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        assert list(packed[number].token_ids) == expected[len(prompt) :]
    assert why_not_packed(loaded) is None
