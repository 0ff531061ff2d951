"""Faster decoding: the same greedy text with each method, and measured statistics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.errors import UserError
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.completion import Completion, DecodingStats
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import generation_config, make_request
from support.generation_config import with_generation_config
from support.tiny import edit_json, write_model

Tiny = Callable[[str], Path]
PROMPT = "the capital of france"
# gemma3's random weights repeat themselves, so prompt lookup finds the next tokens
REPEATING = "gemma3"


def load_tiny(folder: Path, *, draft: dict[str, Any] | None = None, **generation: Any) -> llmctl.LoadedModel:
    sections = {"draft": draft} if draft else {}
    return llmctl.load(folder, generation={"max_new_tokens": 40, **generation}, load={"dtype": "float32"}, **sections)


def answer(folder: Path, *, draft: dict[str, Any] | None = None, **generation: Any) -> Completion:
    return llmctl.generate(load_tiny(folder, draft=draft, **generation), PROMPT)


def stats_of(done: Completion) -> DecodingStats:
    assert done.decoding_stats is not None
    return done.decoding_stats


def other_vocabulary(folder: Path, size: int) -> Path:
    """Write a model whose tokenizer was trained on another text, to a vocabulary of `size`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = "zebras quietly jump over foxes while dogs bark at night in the garden behind that old house by the lake "
    inner.train_from_iterator(
        [text * 3],
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>").save_pretrained(str(folder))
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=size,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


def test_prompt_lookup_gives_the_same_text_in_fewer_passes(tiny_models: Tiny) -> None:
    folder = tiny_models(REPEATING)
    plain, looked_up = answer(folder), answer(folder, prompt_lookup_num_tokens=5)
    assert looked_up.token_ids == plain.token_ids
    stats = stats_of(looked_up)
    assert stats.forward_passes is not None
    assert stats.forward_passes < len(plain.token_ids) // 2
    assert stats.accepted_tokens == len(plain.token_ids) - stats.forward_passes
    assert stats.drafted_tokens is not None
    assert stats.drafted_tokens >= stats.accepted_tokens
    assert plain.decoding_stats is None


def test_any_draft_gives_the_same_text(tiny_models: Tiny, tmp_path: Path) -> None:
    folder, bad = tiny_models("llama"), write_model(tmp_path / "bad", "qwen3")
    plain = answer(folder)
    sure = {"num_assistant_tokens": 3, "assistant_confidence_threshold": 0}
    itself, other = (answer(folder, draft={"id": str(id), **sure}) for id in (folder, bad))
    assert itself.token_ids == other.token_ids == plain.token_ids
    assert (stats_of(itself).forward_passes, stats_of(itself).accepted_tokens) == (10, 30)
    assert stats_of(itself).drafted_tokens == 30
    assert itself.first_pass_token_count == 4
    decoding = itself.seconds - itself.first_token_seconds
    assert itself.tokens_per_second == pytest.approx(36 / decoding), "what the first pass brought was not decoded since"
    assert stats_of(other).accepted_tokens == 0
    assert stats_of(other).forward_passes == len(plain.token_ids)


def test_proposed_tokens_stop_at_the_same_stop_string_and_budget(tiny_models: Tiny) -> None:
    folder = tiny_models("llama")
    draft = {"id": str(folder), "num_assistant_tokens": 7, "assistant_confidence_threshold": 0}
    whole = answer(folder)
    stop = whole.text[len(whole.text) // 2 :][:3]
    for generation in ({"stop_strings": [stop]}, {"max_new_tokens": 11}):
        plain, drafted = answer(folder, **generation), answer(folder, draft=draft, **generation)
        assert (drafted.text, drafted.token_ids) == (plain.text, plain.token_ids)
        assert (drafted.finish_reason, drafted.stop_string) == (plain.finish_reason, plain.stop_string)


def test_a_draft_keeps_the_settings_in_the_models_files_and_its_own_number_of_proposals(
    tiny_models: Tiny, tmp_path: Path
) -> None:
    folder, draft = tiny_models("llama"), write_model(tmp_path / "draft")
    edit_json(draft / "generation_config.json", num_assistant_tokens="3", num_beams=2, suppress_tokens=[1])
    plain, drafting = load_tiny(folder), load_tiny(folder, draft={"id": str(draft)})
    assert drafting.draft is not None
    assert drafting.draft.model.generation_config.num_assistant_tokens == 3
    first, second, third, *_ = llmctl.generate(plain, PROMPT).token_ids
    own = {"suppress_tokens": [first], "min_new_tokens": 9, "eos_token_id": [third], "sequence_bias": [[[second], -9]]}
    expected, drafted = (llmctl.generate(with_generation_config(one, own), PROMPT) for one in (plain, drafting))
    assert drafted.token_ids == expected.token_ids
    assert stats_of(drafted).drafted_tokens


def test_a_drafted_answer_streams_its_text_and_closing_stops_it(tiny_models: Tiny) -> None:
    folder = tiny_models(REPEATING)
    loaded = load_tiny(folder, prompt_lookup_num_tokens=5, max_new_tokens=120)
    chunks = list(llmctl.stream(loaded, PROMPT))
    assert chunks[-1].completion is not None
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].completion.text
    passes = []
    loaded.model.register_forward_pre_hook(lambda *_: passes.append(1))
    pieces = llmctl.stream(loaded, PROMPT)
    next(pieces)
    pieces.close()
    assert len(passes) < (stats_of(chunks[-1].completion).forward_passes or 0)


@pytest.mark.parametrize("way", ["draft", "lookup", "static"])
def test_a_conversation_with_faster_decoding_has_the_same_text_and_no_prefix_reuse(way: str, tiny_models: Tiny) -> None:
    folder = tiny_models("llama")
    generation: dict[str, Any] = {
        "draft": {"draft": {"id": str(folder), "assistant_confidence_threshold": 0}},
        "lookup": {"prompt_lookup_num_tokens": 3},
        "static": {"cache_implementation": "static"},
    }[way]
    talks = []
    for more in ({}, generation):
        session = ChatSession(load_tiny(folder, max_new_tokens=9, **more))
        for message in ("the capital of italy", "two plus two"):
            list(session.stream(message))
        talks.append([message.content for message in session.messages])
    assert talks[0] == talks[1]
    assert session.last is not None
    assert session.last.prefilled_tokens == session.last.prompt_tokens


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_static_cache_gives_the_same_text_and_its_size_is_reported(architecture: str, tiny_models: Tiny) -> None:
    folder = tiny_models(architecture)
    plain, static, dynamic = (answer(folder, cache_implementation=kind) for kind in (None, "static", "dynamic"))
    assert static.token_ids == dynamic.token_ids == plain.token_ids
    assert stats_of(dynamic).cache_bytes == pytest.approx(stats_of(dynamic).dynamic_cache_bytes, rel=0.01)
    assert (stats_of(static).cache_bytes or 0) > (stats_of(dynamic).cache_bytes or 0)


def test_transformers_compiles_no_static_cache_on_a_gpu_unless_asked(tiny_models: Tiny) -> None:
    """transformers compiles on a GPU by default, in the thread of the answer: its own criteria decide here."""
    from types import SimpleNamespace

    from transformers import GenerationConfig, StaticCache

    loaded = load_tiny(tiny_models("llama"), cache_implementation="static")
    arguments = make_request(loaded, Prompt((5, 6, 7))).arguments
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), config=loaded.model.config)
    cache = {"cache": StaticCache(config=loaded.model.config, max_cache_len=64)}
    compiles = type(loaded.model)._valid_auto_compile_criteria
    assert compiles(on_gpu, cache, GenerationConfig(cache_implementation="static"))
    assert not compiles(on_gpu, cache, generation_config(arguments))


def test_an_fp8_cache_takes_a_quarter_of_the_float32_size(tiny_models: Tiny) -> None:
    from transformers import cache_utils

    if not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("this transformers has no fp8 cache")
    stats = stats_of(answer(tiny_models("llama"), cache_implementation="quantized"))
    assert stats.cache_bytes == pytest.approx((stats.dynamic_cache_bytes or 0) / 4, rel=0.02)


def test_a_draft_with_another_vocabulary_works_through_text_or_is_refused(tiny_models: Tiny, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    plain = load_tiny(folder)
    size = len(plain.tokenizer)
    drafted = answer(folder, draft={"id": str(other_vocabulary(tmp_path / "smaller", size - 60))})
    assert drafted.token_ids == llmctl.generate(plain, PROMPT).token_ids
    assert (stats_of(drafted).drafted_tokens or 0) > 0
    with pytest.raises(UserError, match="its vocabulary has the same size, but only"):
        load_tiny(folder, draft={"id": str(other_vocabulary(tmp_path / "same", size))})


def test_a_draft_whose_context_is_too_short_is_not_used(tiny_models: Tiny, tmp_path: Path) -> None:
    short = write_model(tmp_path / "short", "llama", max_position_embeddings=32)
    done = answer(tiny_models("llama"), draft={"id": str(short)})
    assert done.token_ids == answer(tiny_models("llama")).token_ids
    assert stats_of(done).drafted_tokens == 0


def test_the_draft_is_checked_like_any_model(tiny_models: Tiny, tiny_copy: Callable[..., Path]) -> None:
    damaged = tiny_copy("llama")
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(UserError, match="only as pickles"):
        load_tiny(tiny_models("llama"), draft={"id": str(damaged)})


def test_compiling_gives_the_same_text_and_happens_once(tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CompileConfig

    # torch's own machinery without the C++ compiler, which takes half a minute
    monkeypatch.setattr(CompileConfig.__init__, "__defaults__", (False, None, "eager", "default", None))
    folder = tiny_models("llama")
    plain, loaded = answer(folder), load_tiny(folder, compile=True)
    first, again = (llmctl.generate(loaded, PROMPT) for _ in range(2))
    assert first.token_ids == again.token_ids == plain.token_ids
    assert (stats_of(first).compile_seconds or 0) > 0
    assert stats_of(again).compile_seconds == 0


@pytest.mark.smollm
def test_smollm_gives_the_same_text_with_each_method(smollm: Path) -> None:
    prompt = "Repeat word for word: the small model read every book in the library, and then it read them again."
    texts, stats = [], []
    for generation in ({}, {"prompt_lookup_num_tokens": 6}, {"cache_implementation": "static"}, None):
        draft = {"draft": {"id": str(smollm)}} if generation is None else {}
        loaded = llmctl.load(
            smollm, load={"dtype": "float32"}, generation={"max_new_tokens": 24, **(generation or {})}, **draft
        )
        done = llmctl.generate(loaded, prompt)
        texts.append(done.text)
        stats.append(done.decoding_stats)
    assert len(set(texts)) == 1
    assert stats[1] is not None
    assert stats[3] is not None
    assert (stats[1].accepted_tokens or 0) > 5
    assert (stats[3].accepted_tokens or 0) > (stats[3].drafted_tokens or 0) * 0.8
