"""Packed sequences answer as each would alone, and requests that cannot be packed run alone in their turn."""

import json
import random
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llmctl
from llmctl.cpu import kernels
from llmctl.cpu.program import compiled
from llmctl.errors import MachineError, UserError
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, EngineCapacity
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.generation.engine.packable import is_packable
from llmctl.generation.engine.prefix_cache import PrefixCache
from llmctl.generation.overrides import with_generation
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, make_request
from llmctl.generation.stream import stream_request
from llmctl.loading.model import LoadedModel

ROOMY, CROWDED = EngineCapacity(64, 512, 4096), EngineCapacity(8, 40, 400)


def alone(loaded: LoadedModel, request: Request) -> Completion:
    return next(c.completion for c in stream_request(loaded, request) if c.completion is not None)


def requests_for(loaded: LoadedModel, count: int, *, longest: int = 90) -> list[Request]:
    chance = random.Random(1)
    prompts = [[chance.randrange(5, 300) for _ in range(chance.randrange(1, longest))] for _ in range(count)]
    return [make_request(loaded, Prompt(tuple(ids)), seed=100 + number) for number, ids in enumerate(prompts)]


@pytest.fixture(scope="module")
def llama(tiny_models: Callable[[str], Path]) -> LoadedModel:
    return llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation={"max_new_tokens": 24})


@pytest.mark.parametrize("size", [ROOMY, CROWDED], ids=["roomy", "crowded"])
def test_packed_answers_equal_answers_alone(
    tiny_models: Callable[[str], Path], architecture: str, size: EngineCapacity
) -> None:
    loaded = llmctl.load(tiny_models(architecture), load={"dtype": "float32"}, generation={"max_new_tokens": 24})
    assert is_packable(loaded)
    requests = requests_for(loaded, 10)
    engine = Engine(loaded, size)
    found = dict(engine.run(enumerate(requests)))
    for number, request in enumerate(requests):
        expected = alone(loaded, request)
        assert isinstance(found[number], Completion)
        assert found[number].token_ids == expected.token_ids
        assert found[number].text == expected.text
        assert found[number].finish_reason == expected.finish_reason
    assert engine.kv_usage == 0


def test_a_sampled_answer_depends_only_on_its_seed(tiny_models: Callable[[str], Path]) -> None:
    settings = {"max_new_tokens": 20, "temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2}
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation=settings)
    requests = requests_for(loaded, 12)
    together = dict(Engine(loaded, ROOMY).run(enumerate(requests)))
    backwards = dict(Engine(loaded, CROWDED).run(reversed(list(enumerate(requests)))))
    for number, request in enumerate(requests):
        assert together[number].token_ids == alone(loaded, request).token_ids == backwards[number].token_ids
    assert len({answer.token_ids for answer in together.values()}) == len(requests)


def test_each_request_has_its_own_stop_strings_and_budget(llama: LoadedModel) -> None:
    plain = make_request(llama, Prompt((7, 8, 9)))
    text = alone(llama, plain).text
    stopping = Request(plain.prompt, plain.arguments, plain.seed, plain.budget, (text[5:9],))
    short = make_request(llama, Prompt((7, 8, 9)), max_new_tokens=3)
    found = dict(Engine(llama, ROOMY).run([("stop", stopping), ("short", short)]))
    assert found["stop"].finish_reason == "stop_string"
    assert found["stop"].text == text.partition(text[5:9])[0]
    assert found["short"].finish_reason == "length"
    assert len(found["short"].token_ids) == 3


def test_log_probabilities_equal_those_of_single_requests(tiny_models: Callable[[str], Path]) -> None:
    settings = {"max_new_tokens": 8, "temperature": 0.9, "logprobs": 2}
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, generation=settings)
    requests = requests_for(loaded, 4)
    found = dict(Engine(loaded, ROOMY).run(enumerate(requests)))
    for number, request in enumerate(requests):
        ours, theirs = found[number].logprobs, alone(loaded, request).logprobs
        assert [one.id for one in ours] == list(found[number].token_ids)
        assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in theirs], abs=1e-4)
        assert [[other.id for other in one.top] for one in ours] == [[other.id for other in one.top] for one in theirs]


def test_running_out_of_memory_is_explained(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    engine = Engine(llama, ROOMY)
    monkeypatch.setattr(compiled(llama.model) or llama.model, "forward", full)
    with pytest.raises(MachineError, match="generating with"):
        dict(engine.run([(0, make_request(llama, Prompt((5, 6))))]))


def test_running_out_of_memory_in_the_trial_of_packing_is_explained(
    tiny_models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32", "cpu_kernels": False})
    monkeypatch.setattr(loaded.model, "forward", full)
    with pytest.raises(MachineError):
        Engine(loaded, ROOMY)


def test_a_cached_prefix_is_not_computed_again(llama: LoadedModel) -> None:
    beginning = list(range(10, 74))
    engine = Engine(llama, ROOMY)
    first = make_request(llama, Prompt((*beginning, 5)))
    second = make_request(llama, Prompt((*beginning, 6, 7)))
    dict(engine.run([(1, first)]))
    assert engine.prefilled_tokens == 65
    answer = dict(engine.run([(2, second)]))[2]
    assert engine.prefilled_tokens == 65 + 2
    assert answer.token_ids == alone(llama, second).token_ids


def test_a_text_that_diverges_within_a_page_shares_the_tokens_before(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("qwen3"), load={"dtype": "float32"}, generation={"max_new_tokens": 8})
    engine = Engine(loaded, ROOMY)
    beginning = list(range(10, 36))
    dict(engine.run([(1, make_request(loaded, Prompt((*beginning, 5, 6, 7))))]))
    before = engine.prefilled_tokens
    turned = make_request(loaded, Prompt((*beginning, 9, 8)))
    answer = dict(engine.run([(2, turned)]))[2]
    assert engine.prefilled_tokens == before + 2
    assert answer.token_ids == alone(loaded, turned).token_ids
    assert engine.kv_usage == 0


def test_a_request_that_can_never_fit_is_refused_and_the_others_are_answered(llama: LoadedModel) -> None:
    engine = Engine(llama, EngineCapacity(8, 64, 64))
    long, short = make_request(llama, Prompt(tuple(range(5, 85)))), make_request(llama, Prompt((5, 6)))
    found = dict(engine.run([("long", long), ("short", short)]))
    assert isinstance(found["long"], MachineError)
    assert "104 tokens" in str(found["long"])
    assert found["short"].token_ids == alone(llama, short).token_ids


def test_cancelled_answers_release_their_pages(llama: LoadedModel) -> None:
    engine = Engine(llama, ROOMY)
    for number, request in enumerate(requests_for(llama, 3)):
        engine.add(number, request)
    engine.step()
    engine.cancel(1)
    ended = set()
    while engine.is_busy:
        ended |= {event.key for event in engine.step() if event.end is not None}
    assert ended == {0, 2}
    assert engine.kv_usage == 0


def test_closing_the_iterator_drops_running_requests(llama: LoadedModel) -> None:
    engine = Engine(llama, ROOMY)
    answers = engine.run(enumerate(requests_for(llama, 5)))
    next(answers)
    answers.close()
    assert not engine.is_busy
    assert engine.kv_usage == 0


def test_requests_are_read_only_as_capacity_becomes_free(llama: LoadedModel) -> None:
    pulled = []

    def source() -> object:
        for number, request in enumerate(requests_for(llama, 20)):
            pulled.append(number)
            yield number, request

    answers = Engine(llama, EngineCapacity(4, 512, 4096)).run(source())
    next(answers)
    assert len(pulled) <= 6
    answers.close()


def test_the_engine_leaves_the_model_unchanged(llama: LoadedModel) -> None:
    request = requests_for(llama, 1)[0]
    before = alone(llama, request)
    dict(Engine(llama, ROOMY).run([(0, request)]))
    assert alone(llama, request).token_ids == before.token_ids
    assert llama.model.config._attn_implementation == llama.measured.attn_implementation


def alone_arguments(loaded: LoadedModel) -> list[Request]:
    """Return requests that cannot be packed, each for another reason."""
    plain = make_request(loaded, Prompt((7, 8, 9, 7, 8, 9, 7)))
    more: list[dict[str, object]] = [
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 2},
        {"cache_implementation": "static"},
    ]
    return [replace(plain, arguments={**plain.arguments, **one}) for one in more]


def test_requests_that_cannot_be_packed_run_alone_between_the_others(llama: LoadedModel) -> None:
    packed, solo = requests_for(llama, 3), alone_arguments(llama)
    mixed = [packed[0], solo[0], packed[1], solo[1], packed[2], solo[2]]
    engine = Engine(llama, ROOMY)
    found = dict(engine.run(enumerate(mixed)))
    assert [found[number].token_ids for number in range(6)] == [alone(llama, one).token_ids for one in mixed]
    assert engine.generated_tokens == sum(len(answer.token_ids) for answer in found.values())
    assert engine.prefilled_tokens == sum(len(one.prompt) for one in mixed)


def test_requests_start_in_order_and_a_solo_request_waits_for_earlier_ones(llama: LoadedModel) -> None:
    engine = Engine(llama, ROOMY)
    first, last = requests_for(llama, 2)
    lone = alone_arguments(llama)[1]
    for key, request in (("first", first), ("lone", lone), ("last", last)):
        engine.add(key, request)
    assert not engine.has_room
    ended = []
    while engine.is_busy:
        assert engine.running <= 1
        ended += [event.key for event in engine.step() if event.end is not None]
    assert ended == ["first", "lone", "last"]
    assert engine.has_room


@pytest.mark.parametrize("number", range(3))
def test_a_request_that_runs_alone_is_cancelled_within_a_token(llama: LoadedModel, number: int) -> None:
    engine = Engine(llama, ROOMY)
    lone = replace(alone_arguments(llama)[number], budget=150)
    lone = replace(lone, arguments={**lone.arguments, "max_new_tokens": 150})
    passes = []
    hook = llama.model.register_forward_pre_hook(lambda *_: passes.append(1))
    engine.add("mine", lone)
    engine.step()
    engine.cancel("mine")
    hook.remove()
    assert not engine.is_busy
    assert len(passes) < 100
    assert not [thread for thread in threading.enumerate() if thread.name == "llmctl-generate-alone"]


def test_running_out_of_memory_in_a_solo_request_is_explained_and_the_engine_continues(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(llama, ROOMY)

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "generate", full)
        engine.add(0, alone_arguments(llama)[1])
        with pytest.raises(MachineError):
            engine.step()
    assert not engine.is_busy
    request = make_request(llama, Prompt((5, 6)))
    assert dict(engine.run([(1, request)]))[1].token_ids == alone(llama, request).token_ids


class TestPrefixCache:
    def test_a_full_page_is_identified_by_all_tokens_up_to_its_end(self) -> None:
        pages = PrefixCache(4, page_tokens=2)
        held = [pages.take(), pages.take()]
        pages.remember(held, [1, 2, 3, 4], start=0)
        assert pages.share([1, 2, 3, 4, 5]).pages == held
        assert pages.share([1, 2, 3, 4]).pages == held[:1]  # the last token has to be computed
        assert pages.share([9, 2, 3, 4, 5]).held == []

    def test_the_matching_tokens_of_a_diverging_page_are_found(self) -> None:
        pages = PrefixCache(8, page_tokens=4)
        first, second = [pages.take(), pages.take()], [pages.take(), pages.take()]
        pages.remember(first, [1, 2, 3, 4, 5, 6, 7, 8], start=0)
        pages.remember(second, [1, 2, 3, 4, 5, 6, 9], start=0, include_partial=True)
        found = pages.share([1, 2, 3, 4, 5, 6, 9, 9])
        assert (found.pages, found.partial, found.partial_tokens) == ([first[0]], second[1], 3)
        found = pages.share([1, 2, 3, 4, 5, 6, 7, 7])
        assert (found.pages, found.partial, found.partial_tokens) == ([first[0]], first[1], 3)
        found = pages.share([1, 2, 3])
        assert (found.pages, found.partial, found.partial_tokens) == ([], first[0], 2)

    def test_equal_tokens_with_different_salts_share_no_page(self) -> None:
        pages = PrefixCache(8, page_tokens=2)
        held = [pages.take(), pages.take()]
        pages.remember(held, [1, 2, 3, 4], start=0, include_partial=True, salt=b"one picture")
        assert pages.share([1, 2, 3, 4, 5], salt=b"one picture").held == held
        assert pages.share([1, 2, 3, 4, 5], salt=b"another").held == []
        assert pages.share([1, 2, 3, 4, 5]).held == []

    def test_a_reused_page_is_no_longer_found(self) -> None:
        pages = PrefixCache(2, page_tokens=4)
        held = [pages.take(), pages.take()]
        pages.remember(held, [1, 2, 3, 4, 5, 6], start=0, include_partial=True)
        pages.release(held)
        assert pages.take() == held[1]
        found = pages.share([1, 2, 3, 4, 5, 6, 7])
        assert (found.pages, found.partial) == ([held[0]], None)

    def test_an_idle_page_keeps_its_contents_until_it_is_needed(self) -> None:
        pages = PrefixCache(2, page_tokens=2)
        held = [pages.take(), pages.take()]
        pages.remember(held, [1, 2, 3, 4], start=0)
        pages.release(held)
        assert pages.free == 2
        assert pages.share([1, 2, 3, 4, 5]).held == held
        pages.release(held)
        assert pages.take() == held[1]  # the end of a text goes before its beginning
        assert pages.share([1, 2, 3, 4, 5]).held == held[:1]

    def test_texts_that_never_recur_do_not_fill_the_memory(self) -> None:
        pages = PrefixCache(1000, page_tokens=2, max_idle=4)
        for number in range(100):
            held = [pages.take() for _ in range(3)]
            pages.remember(held, [number] * 6, start=0)
            assert max(page for page in held if page is not None) < 4 + 3
            pages.release(held)
        assert len(pages.share([99] * 7).held) == 3
        assert pages.share([98] * 7).held  # and the latest are still known
        assert pages.share([90] * 7).held == []

    def test_a_repeated_text_takes_no_further_pages(self) -> None:
        pages = PrefixCache(1000, page_tokens=4)
        for _ in range(50):
            shared = pages.share([1, 2, 3, 4, 5, 6])
            held = [*shared.pages, *(pages.take() for _ in range(2 - len(shared.pages)))]
            pages.remember(held, [1, 2, 3, 4, 5, 6], start=0, include_partial=True)
            pages.release([*held, *shared.held[len(shared.pages) :]])
            assert max(held) < 4

    def test_a_held_page_is_never_reused(self) -> None:
        pages = PrefixCache(2, page_tokens=2)
        mine = pages.take()
        other = pages.take()
        assert {mine, other} == {0, 1}
        assert pages.take() is None
        pages.release([other])
        assert pages.take() == other


def test_structures_are_enforced_in_one_pass_with_other_sequences(llama: LoadedModel) -> None:
    hot = {"temperature": 1.5, "max_new_tokens": 60}
    schema = {"type": "array", "items": {"enum": [1, 20]}, "minItems": 3, "maxItems": 3}
    asked = [
        with_generation(llama, hot, structure=structure)
        for structure in ({"choices": ["yes", "no"]}, {"json_schema": schema}, {}, {"regex": "[a-c]{4}"})
    ]
    requests = [make_request(loaded, Prompt((7, 8, 9)), seed=n) for n, loaded in enumerate(asked)]
    found = dict(Engine(llama, ROOMY).run(enumerate(requests)))
    texts = [completion.text if isinstance(completion, Completion) else "" for _, completion in sorted(found.items())]
    assert texts[0] in ("yes", "no")
    assert len(json.loads(texts[1])) == 3
    assert re.fullmatch("[a-c]{4}", texts[3])
    assert texts[1] == alone(llama, requests[1]).text


def test_a_structure_that_becomes_too_complex_affects_no_other_sequence(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmctl.generation.structured.constraint import StructureProcessor

    def fail(*_: object) -> None:
        raise UserError("planted")

    monkeypatch.setattr(StructureProcessor, "_follow", fail)
    structured = make_request(with_generation(llama, {}, structure={"regex": "a+"}), Prompt((7, 8)))
    found = dict(Engine(llama, ROOMY).run([(0, structured), (1, make_request(llama, Prompt((7, 8))))]))
    assert isinstance(found[0], UserError)
    assert isinstance(found[1], Completion)


@pytest.mark.skipif(kernels.load() is None, reason="the compiled kernels are not here")
class TestInBfloat16:
    """Half precision rounds often and coarsely: only equal computations give equal texts."""

    def test_logits_alone_and_packed_are_the_same_bit_for_bit(
        self, tiny_models: Callable[[str], Path], architecture: str
    ) -> None:
        loaded = llmctl.load(tiny_models(architecture), load={"dtype": "bfloat16"})
        if not is_packable(loaded):
            return
        prompts = [list(request.prompt.ids) for request in requests_for(loaded, 4, longest=40)]
        rows, pages = [], 0
        for ids in prompts:
            rows.append(Segment(ids, 0, range(pages, pages + 3)))
            pages += 3
        packed = forward(loaded.model, lay_out(rows, page_tokens=16), CachePool(pages, 16))
        for ids, found in zip(prompts, packed, strict=True):
            alone = forward(loaded.model, lay_out([Segment(ids, 0, range(3))], page_tokens=16), CachePool(3, 16))[0]
            assert torch.equal(found, alone)
            if architecture != "deepseek_v3":  # its program attends to latents, its modules to keys made of them
                with torch.inference_mode():
                    one = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                assert torch.equal(found, one)

    def test_a_chat_gives_the_same_logits_with_and_without_cached_turns(
        self, tiny_models: Callable[[str], Path]
    ) -> None:
        loaded = llmctl.load(tiny_models("qwen3"), load={"dtype": "bfloat16"}, generation={"max_new_tokens": 30})
        texts = []
        for reuse in (True, False):
            chat = ChatSession(loaded, reuse=reuse)
            for message in ("the capital of france", "and of italy", "two plus two"):
                list(chat.stream(message))
            texts.append([message.content for message in chat.messages])
        assert texts[0] == texts[1]

    def test_a_turn_that_ends_with_its_first_token_reports_its_prefill(
        self, tiny_models: Callable[[str], Path]
    ) -> None:
        loaded = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16"}, generation={"max_new_tokens": 1})
        chat = ChatSession(loaded)
        computed = []
        for _ in range(2):
            list(chat.stream("the capital of france"))
            assert chat.last is not None
            computed.append((chat.last.prefilled_tokens, chat.last.prompt_tokens))
        assert computed[0][0] == computed[0][1]
        assert 0 < computed[1][0] < computed[1][1]
        assert computed[1][0] != computed[0][0]

    def test_torch_computes_what_the_kernel_does_not_support(self, tiny_models: Callable[[str], Path]) -> None:
        loaded = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16"})
        ids = torch.tensor([[0, 0, 7, 8, 9], [5, 6, 7, 8, 9]])
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        with torch.inference_mode():
            padded = loaded.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(0))
            one = loaded.model(input_ids=torch.tensor([[7, 8, 9]]))
        assert torch.allclose(padded.logits[0, -1].float(), one.logits[0, -1].float(), atol=0.3)
